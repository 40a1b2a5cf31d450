"""What the router exports of workers that come and go."""

from collections import Counter as Tally
from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge

from moonshard.metrics import Family, ScrapeCollector
from moonshard.router.members import Role
from moonshard.router.membership import Membership


class Losses:
    """Counted by the cell. lost, returned: workers by role, from the moment the cell was formed."""

    def __init__(self) -> None:
        self.lost: Tally[Role] = Tally()
        self.returned: Tally[Role] = Tally()
        self.num_readmitted = 0
        self.num_handed_over = 0
        self.num_damaged = 0


def register_failover_metrics(
    registry: CollectorRegistry, model_name: str, losses: Losses, membership: Callable[[], Membership]
) -> None:
    """Families of one router."""
    own = [model_name]

    def by_role(tally: Tally[Role]) -> list[tuple[list[str], float]]:
        return [([model_name, role.value], tally[role]) for role in Role]

    families = [
        Family(
            "moonshard_worker_losses",
            "Workers lost since the cell was whole for the first time",
            Counter,
            ["model_name", "role"],
            lambda: by_role(losses.lost),
        ),
        Family(
            "moonshard_worker_returns",
            "Workers that became ready since then: restarts, most of them",
            Counter,
            ["model_name", "role"],
            lambda: by_role(losses.returned),
        ),
        Family(
            "moonshard_sequences_readmitted",
            "Sequences of lost attention workers that went on elsewhere",
            Counter,
            ["model_name"],
            lambda: [(own, losses.num_readmitted)],
        ),
        Family(
            "moonshard_sequences_handed_over",
            "Sequences of drained attention workers that went on elsewhere",
            Counter,
            ["model_name"],
            lambda: [(own, losses.num_handed_over)],
        ),
        Family(
            "moonshard_damaged_weights",
            "Experts whose resident weights were found not to be what was loaded; their process was replaced",
            Counter,
            ["model_name"],
            lambda: [(own, losses.num_damaged)],
        ),
        Family(
            "moonshard_membership_epoch",
            "Number of the committed membership",
            Gauge,
            ["model_name"],
            lambda: [(own, membership().epoch)],
        ),
        Family(
            "moonshard_expert_copies_min",
            "Live copies of the expert that has the fewest",
            Gauge,
            ["model_name"],
            lambda: [(own, membership().coverage.min_copies)],
        ),
    ]
    registry.register(ScrapeCollector(families))
