"""Totals of a dispatcher, kept in the records of its links, where native calls count too."""

from collections.abc import Sequence

from moonshard.kernels.links import LinkRecord
from moonshard.transport.contract import TransportStats


class LinkStats(TransportStats):
    """records: one for each shard, in order; links that are opened later may be appended."""

    __slots__ = ("_records",)

    def __init__(self, records: Sequence[LinkRecord]) -> None:
        self._records = records
        self.num_dispatches = 0
        self.num_rows = 0

    @property
    def sent_bytes(self) -> list[int]:  # type: ignore[override]
        return [record.sent_bytes for record in self._records]

    @property
    def received_bytes(self) -> list[int]:  # type: ignore[override]
        return [record.received_bytes for record in self._records]

    @property
    def wait_s(self) -> list[float]:  # type: ignore[override]
        return [record.waited_ns / 1e9 for record in self._records]
