"""The attention workers as the engine sees them: their accounts, and which of them knows which beginnings."""

from collections.abc import Sequence

from moonshard.router.account import FreeCredits, WorkerAccount
from moonshard.router.admission import MAX_PASSED, Demand, Room
from moonshard.router.flight import Flight
from moonshard.router.members import Credits
from moonshard.router.prefixes import PrefixIndex, chunk_hashes
from moonshard.router.queue import Entry


class Fleet:
    """Workers that are closed keep what they run and get nothing new."""

    def __init__(self) -> None:
        self._accounts: dict[int, WorkerAccount] = {}
        self._closed: set[int] = set()
        self._prefixes = PrefixIndex()

    def __len__(self) -> int:
        return len(self._accounts)

    @property
    def num_running(self) -> int:
        return sum(len(account.flights) for account in self._accounts.values())

    @property
    def has_slot(self) -> bool:
        return any(account.has_slot for account in self._open)

    @property
    def _open(self) -> list[WorkerAccount]:
        return [account for rank, account in self._accounts.items() if rank not in self._closed]

    def has(self, rank: int) -> bool:
        return rank in self._accounts

    def add(self, rank: int, credits: Credits) -> None:
        self._accounts[rank] = WorkerAccount(rank, credits)

    def remove(self, rank: int) -> None:
        """A worker that runs nothing any more."""
        assert not self._accounts[rank].flights, "its sequences were failed or returned"
        del self._accounts[rank]
        self._closed.discard(rank)
        self._prefixes.forget(rank)

    def close(self, rank: int) -> None:
        self._closed.add(rank)

    def reopen(self, rank: int) -> None:
        self._closed.discard(rank)

    def is_quiet(self, rank: int) -> bool:
        """Whether the worker runs nothing and has said so."""
        account = self._accounts.get(rank)
        return account is None or account.is_quiet

    def flights_of(self, rank: int) -> Sequence[Flight]:
        account = self._accounts.get(rank)
        return list(account.flights.values()) if account else ()

    def find(self, rank: int, sequence_id: str) -> Flight | None:
        """The flight of this name on this worker, when it still is there."""
        account = self._accounts.get(rank)
        return account.flights.get(sequence_id) if account else None

    def told(self, rank: int, free: FreeCredits) -> None:
        if account := self._accounts.get(rank):
            account.told(free)

    def rooms(self, keeps_reserve: bool) -> dict[int, Room]:
        return {account.rank: account.room(keeps_reserve) for account in self._open}

    def demand(self, entry: Entry[Flight], is_newcomer: bool) -> Demand:
        flight = entry.item
        return Demand(
            entry.id,
            flight.num_tokens,
            flight.request.max_len,
            MAX_PASSED if entry.returned else entry.num_passed,
            is_newcomer,
            self._prefixes.num_cached(self._hashes(flight)) if len(self._accounts) > 1 else {},
        )

    def join(self, flight: Flight, demand: Demand, room: Room) -> None:
        flight.rank = room.rank
        self._accounts[room.rank].join(flight, demand, room)
        if len(self._accounts) > 1:
            self._prefixes.note(self._hashes(flight), room.rank)

    def prefilled(self, flight: Flight) -> None:
        """Its prompt has been run."""
        assert flight.rank is not None
        self._accounts[flight.rank].prefilled(flight)

    def leave(self, flight: Flight) -> None:
        assert flight.rank is not None
        self._accounts[flight.rank].leave(flight)
        if len(self._accounts) > 1 and flight.output.token_ids:
            # The next turn of a conversation begins with this one's prompt and answer.
            self._prefixes.note(chunk_hashes(flight.all_token_ids), flight.rank)
        flight.rank = None

    def _hashes(self, flight: Flight) -> Sequence[int]:
        if flight.prefix_hashes is None:
            flight.prefix_hashes = chunk_hashes(flight.request.prompt_token_ids)
        return flight.prefix_hashes
