"""Faults that only a shard itself can have: nonsense in its answers, silence on its links. For `moonshard chaos`."""

import logging
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from moonshard.experts.sentinel import Weights
from moonshard.process import CORRUPT_SIGNAL, DAMAGE_SIGNAL, PARTITION_SIGNAL, STALE_SIGNAL
from moonshard.transport.contract import ExpertBatch

logger = logging.getLogger(__name__)


class FaultHooks:
    """seconds: how long a fault lasts; 0: the signals are ignored. weights: those that may be damaged, which lasts.

    For a process's main thread.
    """

    def __init__(self, seconds: float, weights: Callable[[], Iterator[Weights]] = lambda: iter(())) -> None:
        self.allowed = seconds > 0
        self._corrupt_until_s = self._partitioned_until_s = self._stale_until_s = 0.0
        self._seconds = seconds
        self._weights = weights
        if threading.current_thread() is not threading.main_thread():
            return  # elsewhere Python takes no handlers
        for number, handler in (
            (CORRUPT_SIGNAL, self._corrupt),
            (PARTITION_SIGNAL, self._partition),
            (STALE_SIGNAL, self._turn_stale),
            (DAMAGE_SIGNAL, self._damage),
        ):
            signal.signal(number, handler if self.allowed else signal.SIG_IGN)

    def distort(self, y_RD: Tensor) -> Tensor:
        """Sums as they are, or NaN in the first column."""
        if time.monotonic() < self._corrupt_until_s:
            y_RD[:, 0] = float("nan")
        return y_RD

    def age(self, batch: ExpertBatch) -> ExpertBatch:
        """The batch as it is, or one whose answers will say that they are of the layer before."""
        if not isinstance(batch.ticket, list) or time.monotonic() >= self._stale_until_s:
            return batch
        return batch._replace(
            ticket=[replace(it, header=it.header._replace(layer=it.header.layer - 1)) for it in batch.ticket]
        )

    def while_partitioned(self, wait: Callable[[float], object]) -> None:
        """Returns when the links may be heard again; `wait` may end earlier, when the process does."""
        if (remaining_s := self._partitioned_until_s - time.monotonic()) > 0:
            wait(remaining_s)

    def _corrupt(self, *_: object) -> None:
        logger.warning("answers nonsense for %g s, as a signal wishes", self._seconds)
        self._corrupt_until_s = time.monotonic() + self._seconds

    def _damage(self, *_: object) -> None:
        """Flip one bit of one weight, as a failing memory does."""
        found = random.choice(list(self._weights()))
        byte = random.choice(found.memory).view(torch.uint8).view(-1)[:1]
        logger.warning("flips a bit of layer %d, expert %d, as a signal wishes", found.layer, found.expert)
        byte ^= 1

    def _turn_stale(self, *_: object) -> None:
        logger.warning("answers for another layer for %g s, as a signal wishes", self._seconds)
        self._stale_until_s = time.monotonic() + self._seconds

    def _partition(self, *_: object) -> None:
        logger.warning("is deaf and dumb on its links for %g s, as a signal wishes", self._seconds)
        self._partitioned_until_s = time.monotonic() + self._seconds
