"""Who may ask for what only the operator should see. Keys are compared in constant time and told nowhere."""

import hmac
import ipaddress
from collections.abc import Iterable
from pathlib import Path

from moonshard.config import RouterConfig
from moonshard.errors import ConfigError, Unauthenticated

FIELD = "router.operator_key_file"


class OperatorKey:
    """The guard of one router. Without a key only a router that listens on the loopback interface lets callers in."""

    def __init__(self, key: bytes | None, host: str) -> None:
        self._key = key
        self._open = key is None and is_loopback(host)

    @classmethod
    def read(cls, config: RouterConfig) -> "OperatorKey":
        """Raises ConfigError when the file cannot be read or is empty."""
        return cls(read_key(config.operator_key_file) if config.operator_key_file else None, config.host)

    def check(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Raises Unauthenticated unless the call's metadata hold `authorization: Bearer KEY`."""
        if self._open:
            return
        if self._key is None:
            raise Unauthenticated(f"needs the operator's key, and this router has none: set {FIELD}")
        given = dict(metadata).get("authorization", "")
        given = given if isinstance(given, bytes) else given.encode()
        if not hmac.compare_digest(given, b"Bearer " + self._key):
            raise Unauthenticated("needs the operator's key as metadata `authorization: Bearer KEY`")


def read_key(path: Path) -> bytes:
    """The file's contents without white space at its ends."""
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(FIELD, f"cannot read {path}: {error.strerror}") from None
    if not key:
        raise ConfigError(FIELD, f"{path} is empty")
    return key


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
