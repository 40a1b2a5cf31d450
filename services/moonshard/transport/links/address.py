"""Where an endpoint listens: `unix:/path` on one host, `tcp:host:port` between hosts (`tcp:[::1]:0` for IPv6)."""

import os
import socket
import stat
from pathlib import Path

from moonshard.errors import ConfigError, PeerLost

_UNIX_PATH_BYTES_MAX = 107
_BACKLOG = 128
# 64 rows of 7168: 1.0 ms with eight links, against 1.6 with the kernel's default and 1.4 with 4 MB, which leaves the
# cache. The kernel may grant less (net.core.wmem_max).
_UNIX_SEND_BYTES = 600_000


def parse(address: str) -> str | tuple[str, int]:
    """A path for `unix:`, (host, port) for `tcp:`. Raises ConfigError."""
    scheme, _, rest = address.partition(":")
    if scheme == "unix" and rest:
        if (size := len(os.fsencode(rest))) > _UNIX_PATH_BYTES_MAX:
            raise ConfigError("address", f"a Unix socket path has at most {_UNIX_PATH_BYTES_MAX} bytes, got {size}")
        return rest
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError("address", f"must be unix:/path or tcp:host:port, got {address!r}")
    return host.strip("[]"), int(port)


def tcp_address(host: str, port: int) -> str:
    """`tcp:host:port`, IPv6 in brackets."""
    return f"tcp:[{host}]:{port}" if ":" in host else f"tcp:{host}:{port}"


def advertised(address: str, host: str) -> str:
    """A bound address as others reach it: `host` in place of the one it listens on; Unix paths and "" stay."""
    target = parse(address)
    return address if isinstance(target, str) or not host else tcp_address(host, target[1])


def connect(address: str, timeout_s: float) -> socket.socket:
    """A connected stream socket (blocking, with timeout_s). Raises PeerLost."""
    target = parse(address)
    try:
        if isinstance(target, str):
            return _connect_unix(target, timeout_s)
        connection = socket.create_connection(target, timeout_s)
    except OSError as error:
        raise PeerLost(f"cannot connect to {address}: {error.strerror or error}") from error
    tune(connection)
    return connection


def tune(connection: socket.socket) -> None:
    """Send small messages at once, large ones in few turns, and notice a vanished host."""
    if connection.family == socket.AF_UNIX:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNIX_SEND_BYTES)
    else:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _connect_unix(path: str, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    tune(connection)
    return connection


class Listener:
    """A listening socket that knows its address and removes its file when closed."""

    def __init__(self, address: str) -> None:
        target = parse(address)
        self._path = Path(target) if isinstance(target, str) else None
        try:
            self.socket = _listen_unix(target) if isinstance(target, str) else _listen_tcp(target)
        except OSError as error:
            raise ConfigError("address", f"cannot listen on {address}: {error.strerror or error}") from error
        self.socket.setblocking(False)
        self._inode = self._path.stat().st_ino if self._path else None
        self.address = address if self._path else _tcp_address(self.socket)

    def accept(self) -> socket.socket | None:
        """The next connection, non-blocking, or None when nobody waits any more."""
        try:
            connection, _ = self.socket.accept()
        except (BlockingIOError, ConnectionError):
            return None
        connection.setblocking(False)
        tune(connection)
        return connection

    def close(self) -> None:
        self.socket.close()
        # A successor may already listen under the same name: its file stays.
        if self._path and self._path.exists() and self._path.stat().st_ino == self._inode:
            self._path.unlink()


def _listen_unix(path: str) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        Path(path).chmod(0o600)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _listen_tcp(target: tuple[str, int]) -> socket.socket:
    family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
    return socket.create_server(target, family=family, backlog=_BACKLOG)


def _tcp_address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return tcp_address(host, port)


def _remove_stale(path: str) -> None:
    """Remove the socket file of a dead process. Refuses to touch other files and living listeners."""
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError("address", f"unix:{path} exists and is not a socket")
    try:
        _connect_unix(path, timeout_s=1.0).close()
    except ConnectionRefusedError:
        Path(path).unlink()
        return
    raise ConfigError("address", f"another process listens on unix:{path}")
