"""Whether the resident expert weights still are what was loaded: checksums, again and again, in a thread of its own.

An expert's bytes are the same wherever in memory it lies, so a checksum belongs to (layer, expert), not to a place. The
first one is taken as soon as the shard serves, which a restart need not wait for; what is damaged before that is not
seen here.
"""

import logging
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

PAUSE_S_MIN = 0.05  # shorter ones are gathered: a wake-up costs more than a small expert's sum


class Weights(NamedTuple):
    """Where one expert of one layer lies now: contiguous tensors on the CPU."""

    layer: int
    expert: int
    memory: Sequence[Tensor]


class Sentinel:
    """weights: walks over all experts that are here; look: where one is now, None when it is not here any more.

    round_s: seconds in which every expert is looked at once, evenly. alarm: called with layer and expert, once; then
    the sentinel ends: whoever computes with such weights has to go.
    """

    def __init__(
        self,
        weights: Callable[[], Iterator[Weights]],
        look: Callable[[int, int], Weights | None],
        round_s: float,
        alarm: Callable[[int, int], None],
    ) -> None:
        self.num_checked = 0
        self._weights, self._look = weights, look
        self._round_s, self._alarm = round_s, alarm
        self._sums: dict[tuple[int, int], int] = {}
        self._num_hurried = 0
        self._over = False
        self._woken = threading.Event()
        self._thread = threading.Thread(target=self._run, name="weight-sentinel", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def hurry(self) -> None:
        """Look at every expert now, without pauses. From any thread."""
        self._num_hurried = sum(1 for _ in self._weights())
        self._woken.set()

    def close(self) -> None:
        self._over = True
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join()

    def check(self, found: Weights) -> bool:
        """Whether one expert is as it was; the first time it always is."""
        checksum = checksum_of(found.memory)
        now = self._look(found.layer, found.expert)
        if now is None or not _same_place(now, found):
            return True  # it moved meanwhile: who knows what was read
        self.num_checked += 1
        return self._sums.setdefault((found.layer, found.expert), checksum) == checksum

    def _run(self) -> None:
        owed_s = 0.0
        while not self._over:
            known = list(self._weights())
            for found in known:
                if self._over:
                    return
                is_first = (found.layer, found.expert) not in self._sums
                if not self.check(found):
                    logger.error("layer %d, expert %d: weights are not what was loaded", found.layer, found.expert)
                    self._alarm(found.layer, found.expert)
                    return
                if self._num_hurried:
                    self._num_hurried -= 1
                elif not is_first:
                    owed_s = self._pause(owed_s + self._round_s / len(known))
            if not known:
                self._pause(self._round_s)

    def _pause(self, owed_s: float) -> float:
        """Wait for what is owed, unless it is too little or somebody is in a hurry; what is owed then."""
        if owed_s < PAUSE_S_MIN:
            return owed_s
        self._woken.wait(owed_s)
        self._woken.clear()
        return 0.0


def checksum_of(memory: Sequence[Tensor]) -> int:
    """CRC-32 of the bytes, about 3 GB/s; other threads run meanwhile."""
    checksum = 0
    for tensor in memory:
        checksum = zlib.crc32(tensor.view(torch.uint8).numpy().data, checksum)
    return checksum


def _same_place(one: Weights, other: Weights) -> bool:
    return [it.data_ptr() for it in one.memory] == [it.data_ptr() for it in other.memory]
