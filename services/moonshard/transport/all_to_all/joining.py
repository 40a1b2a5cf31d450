"""Forming a group: the store where its ranks meet, and the process group itself."""

import secrets
import socket
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, ProcessGroup, TCPStore  # type: ignore[attr-defined]

from moonshard.errors import ConfigError, PeerLost, TransportTimeout
from moonshard.transport.all_to_all.group import Group, first_line
from moonshard.transport.all_to_all.presence import Presence

_RING_TIMEOUT = timedelta(seconds=5)


def host_store(address: str, timeout_s: float) -> TCPStore:
    """What rank 0 keeps for as long as it lives: groups of all epochs meet there. Raises ConfigError or PeerLost."""
    host, port = _parse(address)
    try:
        return TCPStore(host, port, None, True, timedelta(seconds=timeout_s), wait_for_workers=False)
    except RuntimeError as error:
        raise PeerLost(f"rank 0 cannot listen at {address}: {first_line(error)}") from error


def join_group(
    address: str,
    rank: int,
    world_size: int,
    device: torch.device | str,
    timeout_s: float,
    *,
    exchange_s: float | None = None,
    epoch: int = 0,
    hosts_store: bool | None = None,
    instance: str = "",
) -> Group:
    """Join the group whose store rank 0 hosts at `address` (host:port). Returns when all ranks are there.

    timeout_s: limit for joining; exchange_s: for every later exchange, the same when None. epoch: groups of different
    ones do not meet. hosts_store: whether this call makes the store; rank 0's does when None. instance: a word for
    this process; a random one when empty. Raises ConfigError, PeerLost, TransportTimeout.
    """
    host, port = _parse(address)
    device, timeout = torch.device(device), timedelta(seconds=timeout_s)
    if not 0 <= rank < world_size:
        raise ConfigError("rank", f"must be in 0..{world_size - 1}, got {rank}")
    instance = instance or secrets.token_hex(8)
    hosts_store = rank == 0 if hosts_store is None else hosts_store
    exchange_s = timeout_s if exchange_s is None else exchange_s
    try:
        store = TCPStore(host, port, None, hosts_store, timeout, wait_for_workers=False)
        ringer = TCPStore(host, port, None, False, timeout, wait_for_workers=False)
        ringer.set_timeout(_RING_TIMEOUT)
        own_host = _own_host(host)
        meeting = PrefixStore(f"epoch/{epoch}/group/", store)
        group = _make_process_group(meeting, own_host, rank, world_size, device, timeout, timedelta(seconds=exchange_s))
        with ExitStack() as undo:
            presence = Presence(own_host, instance)
            undo.callback(presence.close)
            joined = Group(group, store, ringer, presence, device, exchange_s, epoch)
            undo.pop_all()
        return joined
    except OSError as error:
        raise PeerLost(f"rank {rank} of {world_size} cannot join the group at {address}: {error}") from error
    except RuntimeError as error:
        problem = f"rank {rank} of {world_size} cannot join the group at {address}: {first_line(error)}"
        timed_out = "timed out" in str(error).lower() or "timeout" in str(error).lower()
        raise (TransportTimeout if timed_out else PeerLost)(problem) from error


def _make_process_group(
    store: PrefixStore,
    own_host: str,
    rank: int,
    world_size: int,
    device: torch.device,
    timeout: timedelta,
    exchange: timedelta,
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
    backend._set_default_timeout(exchange)
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
