"""The process group of one cell, its store, and the doorbell that ends a common sleep.

The group is built beside torch's process-wide default group, so that two workers can live in one process.
"""

import socket
import time
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, ProcessGroup, TCPStore  # type: ignore[attr-defined]

from moonshard.errors import ConfigError, PeerLost, TransportTimeout
from moonshard.transport.all_to_all.bell import Bell
from moonshard.transport.all_to_all.presence import Presence, absent

_RING_TIMEOUT = timedelta(seconds=5)
_PROBES = 3
_PROBE_PAUSE_S = 0.1


class Group:
    """Rank `rank` of `world_size` on `device`. `close` it from the thread that uses it; `ring` from any thread."""

    def __init__(
        self,
        process_group: ProcessGroup,
        store: TCPStore,
        ringer: TCPStore,
        presence: Presence,
        device: torch.device,
        timeout_s: float,
    ) -> None:
        """Blocks until every rank has told where its presence is."""
        self.process_group: ProcessGroup | None = process_group
        self.rank = process_group.rank()
        self.world_size = process_group.size()
        self.names = [f"rank {rank}" for rank in range(self.world_size)]
        self.device = device
        self.timeout_s = timeout_s
        self._bell = Bell(store, ringer)
        self._presence = presence
        store.set(f"presence/{self.rank}", presence.address)
        self._addresses = [store.get(f"presence/{rank}").decode() for rank in range(self.world_size)]

    def all_gather(self, row: list[int], what: str) -> list[list[int]]:
        """Every rank's row of numbers, by rank. On CUDA this is the step's one host sync."""
        own = torch.tensor(row, dtype=torch.int64, device=self.device)
        rows = [torch.empty_like(own) for _ in range(self.world_size)]
        with translated(self, what):
            dist.all_gather(rows, own, group=self.process_group)
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
        with translated(self, what):
            work.wait()

    def ring(self, number: int) -> None:
        """End everyone's `sleep` at this bell, present or to come. Any thread."""
        self._bell.ring(number)

    def sleep(self, number: int, timeout_s: float) -> bool:
        """Block until the bell is rung; False after timeout_s. Raises PeerLost when the store (rank 0) is gone."""
        try:
            rung = self._bell.sleep(number, timeout_s)
        except RuntimeError as error:
            raise PeerLost(f"the store of rank 0 is gone: {_first_line(error)}") from error
        if rung and self.rank == 0 and number:
            self._bell.forget(number - 1)  # an agreement of all ranks lies between the two
        return rung

    def who_is_gone(self) -> str:
        """For the reader of an error: the ranks whose process has ended or left."""
        for _ in range(_PROBES):
            if others := [self.names[rank] for rank in absent(self._addresses) if rank != self.rank]:
                return f"{', '.join(others)} gone"
            time.sleep(_PROBE_PAUSE_S)  # a dying process closes its sockets one after the other
        return "the connection to another rank broke"

    def close(self) -> None:
        """Leave the group. Never waits for the others, dead or alive."""
        group, self.process_group = self.process_group, None
        if group is None:
            return
        self._bell.close()
        self._presence.close()
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

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, RuntimeError):
            return
        where = f"{self._what}, {self._group.names[self._group.rank]}"
        if "timed out" in str(error).lower() or "timeout" in str(error).lower():
            raise TransportTimeout(f"{where}: no answer within {self._group.timeout_s:g} s") from error
        raise PeerLost(f"{where}: {self._group.who_is_gone()}: {_first_line(error)}") from error


def join_group(address: str, rank: int, world_size: int, device: torch.device | str, timeout_s: float) -> Group:
    """Join the group whose store rank 0 hosts at `address` (host:port). Returns when all ranks are there.

    timeout_s: limit for joining and for every later exchange. Raises ConfigError, PeerLost, TransportTimeout.
    """
    host, port = _parse(address)
    device = torch.device(device)
    timeout = timedelta(seconds=timeout_s)
    if not 0 <= rank < world_size:
        raise ConfigError("rank", f"must be in 0..{world_size - 1}, got {rank}")
    try:
        store = TCPStore(host, port, world_size, rank == 0, timeout, wait_for_workers=False)
        ringer = TCPStore(host, port, world_size, False, timeout, wait_for_workers=False)
        ringer.set_timeout(_RING_TIMEOUT)
        own_host = _own_host(host)
        group = _make_process_group(PrefixStore("group/", store), own_host, rank, world_size, device, timeout)
        with ExitStack() as undo:
            presence = Presence(own_host)
            undo.callback(presence.close)
            joined = Group(group, store, ringer, presence, device, timeout_s)
            undo.pop_all()
        return joined
    except RuntimeError as error:
        problem = f"rank {rank} of {world_size} cannot join the group at {address}: {_first_line(error)}"
        timed_out = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        raise (TransportTimeout if timed_out else PeerLost)(problem) from error


def _make_process_group(
    store: PrefixStore, own_host: str, rank: int, world_size: int, device: torch.device, timeout: timedelta
) -> ProcessGroup:
    group = ProcessGroup(store, rank, world_size)
    options: Any
    backend: Any
    if device.type == "cuda":
        # This branch has never run: the project's machines have no CUDA device.
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        torch.cuda.set_device(device)
        backend = dist.ProcessGroupNCCL(store, rank, world_size, options)
        kind = ProcessGroup.BackendType.NCCL
    else:
        options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=own_host, lazy_init=False)]
        options._timeout = timeout
        backend = dist.ProcessGroupGloo(store, rank, world_size, options)
        kind = ProcessGroup.BackendType.GLOO
    group._set_default_backend(kind)
    group._register_backend(device, kind, backend)
    return group


def _own_host(store_host: str) -> str:
    """Our address as seen by the store's host: gloo would take what the host name resolves to, often wrong."""
    family, _, _, _, target = socket.getaddrinfo(store_host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)
        own: str = probe.getsockname()[0]
        return own


def _parse(address: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("tcp:").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError("address", f"must be host:port, got {address!r}")
    return host.strip("[]"), int(port)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
