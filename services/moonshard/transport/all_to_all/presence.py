"""Tells which ranks are gone. gloo and NCCL say only that some connection broke.

Each rank keeps a listening socket that nobody ever accepts from: while the process lives, connecting succeeds.
"""

import socket
from collections.abc import Sequence

_PROBE_TIMEOUT_S = 0.5


class Presence:
    """Our own sign of life at `address` ("host port instance"), until closed. instance: tells processes apart."""

    def __init__(self, host: str, instance: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, 0), family=family, backlog=128)
        self.address = f"{host} {self._socket.getsockname()[1]} {instance}"

    def close(self) -> None:
        self._socket.close()


def absent(addresses: Sequence[str]) -> list[int]:
    """Indices of the addresses where nobody lives any more."""
    return [index for index, address in enumerate(addresses) if not _lives(address)]


def _lives(address: str) -> bool:
    host, port, _ = address.split(" ")
    try:
        socket.create_connection((host, int(port)), _PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    return True
