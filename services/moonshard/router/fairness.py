"""How much each tenant has had: who got least goes first. Pure.

Each tenant has a counter of tokens served, divided by its weight (virtual token counters; Sheng et al., "Fairness in
Serving Large Language Models", OSDI 2024). A tenant that comes back starts where the least served of the active ones
stands: idling earns nothing that could be spent on everybody else's cost later.
"""

from collections.abc import Mapping
from dataclasses import dataclass

MAX_TENANTS = 4096


@dataclass(slots=True)
class _Account:
    weight: float
    served: float = 0.0
    num_open: int = 0  # requests waiting or running
    num_running: int = 0


class Ledger:
    """weights: of tenants that the operator named; the others weigh 1."""

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        self._accounts = {tenant: _Account(weight) for tenant, weight in (weights or {}).items()}
        self._named = frozenset(self._accounts)
        self._floor = 0.0  # what a newly active tenant starts from; never falls

    @property
    def expects_others(self) -> bool:
        """Whether tenants have names here: then one that was never seen may come at any moment."""
        return len(self._accounts) > 1 or "" not in self._accounts

    def served(self, tenant: str) -> float:
        return self._accounts[tenant].served

    def weight(self, tenant: str) -> float:
        return self._accounts[tenant].weight if tenant in self._accounts else 1.0

    def share(self, tenant: str) -> float:
        """Of everything, beside the tenants that have a request waiting or running now."""
        others = sum(a.weight for name, a in self._accounts.items() if a.num_open and name != tenant)
        return self.weight(tenant) / (self.weight(tenant) + others)

    def is_newcomer(self, tenant: str) -> bool:
        """Whether nothing of this tenant runs."""
        return not self._accounts[tenant].num_running

    def opened(self, tenant: str) -> None:
        """A request of this tenant was queued."""
        account = self._accounts.get(tenant)
        if account is None:
            self._forget_some()
            account = self._accounts[tenant] = _Account(1.0)
        if not account.num_open:
            account.served = max(account.served, self._least())
        account.num_open += 1

    def closed(self, tenant: str) -> None:
        """A request that waited or ran is over."""
        account = self._accounts[tenant]
        if account.num_open == 1:
            self._least()
        account.num_open -= 1
        if not any(other.num_open for other in self._accounts.values()):
            self._floor = max(self._floor, account.served)

    def started(self, tenant: str) -> None:
        self._accounts[tenant].num_running += 1

    def stopped(self, tenant: str) -> None:
        self._accounts[tenant].num_running -= 1

    def charge(self, tenant: str, num_tokens: int) -> None:
        account = self._accounts[tenant]
        account.served += num_tokens / account.weight

    def _least(self) -> float:
        """Of the active tenants' counters, or the last known when none is active."""
        self._floor = max(
            self._floor, min((account.served for account in self._accounts.values() if account.num_open), default=0.0)
        )
        return self._floor

    def _forget_some(self) -> None:
        """Names come from callers: those who have nothing here are forgotten when there are very many."""
        if len(self._accounts) >= MAX_TENANTS:
            self._accounts = {
                tenant: account
                for tenant, account in self._accounts.items()
                if account.num_open or tenant in self._named
            }
