"""The process group of one cell in one epoch, its store, and the doorbell that ends a common sleep.

The group is built beside torch's process-wide default group, so that two workers can live in one process.
"""

import threading
import traceback
from contextlib import suppress
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup, TCPStore  # type: ignore[attr-defined]

from moonshard.errors import PeerLost, TransportError, TransportTimeout
from moonshard.transport.all_to_all.bell import Bell
from moonshard.transport.all_to_all.presence import Presence, absent

_PROBES = 3
_PROBE_PAUSE_S = 0.1


class Group:
    """Rank `rank` of `world_size` on `device`. `close` it in the thread that uses it; `ring` and `interrupt` in any.

    timeout_s: limit of every exchange. epoch: of the membership that it was formed under. attention: the numbers of its
    attention workers, in rank order; set by whoever knows, for names and headers. instances: by rank; each process has
    its own.
    """

    def __init__(
        self,
        process_group: ProcessGroup,
        store: TCPStore,
        ringer: TCPStore,
        presence: Presence,
        device: torch.device,
        timeout_s: float,
        epoch: int = 0,
    ) -> None:
        """Blocks until every rank has told where its presence is."""
        self.process_group: ProcessGroup | None = process_group
        self.rank = process_group.rank()
        self.world_size = process_group.size()
        self.names = [f"rank {rank}" for rank in range(self.world_size)]
        self.attention: tuple[int, ...] = ()
        self.device = device
        self.timeout_s = timeout_s
        self.epoch = epoch
        self.interruption = ""
        self._stirred = threading.Event()
        prefix = f"epoch/{epoch}/"
        self._bell = Bell(store, ringer, prefix)
        self._presence = presence
        store.set(f"{prefix}presence/{self.rank}", presence.address)
        self._addresses = [store.get(f"{prefix}presence/{rank}").decode() for rank in range(self.world_size)]
        self.instances = [address.split(" ")[2] for address in self._addresses]

    def all_gather(self, row: list[int], what: str) -> list[list[int]]:
        """Every rank's row of numbers, by rank. On CUDA this is the step's one host sync."""
        own = torch.tensor(row, dtype=torch.int64, device=self.device)
        rows = [torch.empty_like(own) for _ in range(self.world_size)]
        with translated(self, what):
            work = dist.all_gather(rows, own, group=self.process_group, async_op=True)
        self.wait(work, what)
        return [r.tolist() for r in rows]

    def all_gather_bytes(self, data: bytes, what: str) -> list[bytes]:
        """Every rank's bytes, by rank."""
        sizes = [size for [size] in self.all_gather([len(data)], what)]
        padded = list(data.ljust(max(sizes), b"\0"))
        rows = self.all_gather(padded, what)
        return [bytes(row[:size]) for row, size in zip(rows, sizes, strict=True)]

    def exchange(self, out: torch.Tensor, out_sizes: list[int], data: torch.Tensor, sizes: list[int]) -> Any:
        """Start an all-to-all of uint8 tensors with one size per rank; returns the work to wait for."""
        with translated(self, "all-to-all"):
            return dist.all_to_all_single(out, data, out_sizes, sizes, group=self.process_group, async_op=True)

    def wait(self, work: Any, what: str) -> None:
        """Raises PeerLost or TransportTimeout; PeerLost at once after `interrupt`."""
        with translated(self, what):
            if self.device.type == "cpu":
                self._await_stir(work)
            work.wait()

    def interrupt(self, reason: str) -> None:
        """End the owner's wait, present or to come: the group is over. Any thread."""
        self.interruption = self.interruption or reason
        self._stirred.set()
        self._bell.interrupt(reason)
        if self.device.type == "cuda" and (group := self.process_group):
            # Has never run: the owner hangs in a copy from the device until the kernels are told to end.
            with suppress(RuntimeError):
                group.abort()

    def ring(self, number: int) -> None:
        """End everyone's `sleep` at this bell, present or to come. Any thread."""
        self._bell.ring(number)

    def sleep(self, number: int, timeout_s: float) -> bool:
        """Block until the bell is rung; False after timeout_s. Raises PeerLost when the store (rank 0) is gone, or
        after `interrupt`."""
        try:
            rung = self._bell.sleep(number, timeout_s)
        except RuntimeError as error:
            raise PeerLost(self.interruption or f"the store of rank 0 is gone: {first_line(error)}") from error
        if rung and self.rank == 0 and number:
            self._bell.forget(number - 1)  # an agreement of all ranks lies between the two
        return rung

    def who_is_gone(self) -> str:
        """For the reader of an error: the ranks whose process has ended or left."""
        for _ in range(_PROBES):
            if others := [self.names[rank] for rank in absent(self._addresses) if rank != self.rank]:
                return f"{', '.join(others)} gone"
            if self._stirred.wait(_PROBE_PAUSE_S):  # a dying process closes its sockets one after the other
                break
        return "the connection to another rank broke"

    def close(self) -> None:
        """Leave the group. Never waits for the others, dead or alive."""
        if self.process_group is None:
            return
        # No name here for the process group: whoever drops the last one waits for it.
        last, self.process_group = _Last(self.process_group), None
        self._presence.close()
        threading.Thread(target=_bury, args=(last, self._bell), name="group-end", daemon=True).start()

    def _await_stir(self, work: Any) -> None:
        """gloo cannot be aborted: wait for its work, or for `interrupt`, whatever comes first."""
        work.get_future().add_done_callback(lambda _: self._stirred.set())
        if not self._stirred.wait(self.timeout_s):
            raise RuntimeError("timed out")
        self._stirred.clear()
        if self.interruption:
            raise RuntimeError(self.interruption)


class _Last:
    """The last reference to a process group, for the thread that lets it go."""

    def __init__(self, group: ProcessGroup) -> None:
        self.group: ProcessGroup | None = group


def _bury(last: _Last, bell: Bell) -> None:
    """gloo's destructor waits for what is under way: until its sockets break, or for one time limit."""
    bell.close()
    group, last.group = last.group, None
    if group is not None:
        with suppress(RuntimeError):
            group.abort()


class translated:  # noqa: N801  reads as a phrase: `with translated(group, "agreement")`
    """Turn what torch raises into PeerLost or TransportTimeout that says where we were."""

    def __init__(self, group: Group, what: str) -> None:
        self._group = group
        self._what = what

    def __enter__(self) -> None:
        if self._group.process_group is None:
            raise PeerLost(f"{self._what}: rank {self._group.rank} has left the group")
        if self._group.interruption:
            raise PeerLost(f"{self._what}: {self._group.interruption}")

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, RuntimeError):
            return
        where = f"{self._what}, {self._group.names[self._group.rank]}"
        if self._group.interruption:
            raise PeerLost(f"{where}: {self._group.interruption}") from error
        raise translation(error, where, self._group.timeout_s, self._group.who_is_gone) from error


def release(error: BaseException) -> None:
    """Let go of what the frames of an error hold: an exchange that failed would keep the group's sockets open."""
    cause: BaseException | None = error
    while cause:
        traceback.clear_frames(cause.__traceback__)
        cause = cause.__cause__ or cause.__context__


def translation(error: RuntimeError, where: str, timeout_s: float, who_is_gone: Any) -> TransportError:
    """torch tells a limit that has passed from a broken connection by its words only."""
    if "timed out" in str(error).lower() or "timeout" in str(error).lower():
        return TransportTimeout(f"{where}: no answer within {timeout_s:g} s")
    return PeerLost(f"{where}: {who_is_gone()}: {first_line(error)}")


def first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
