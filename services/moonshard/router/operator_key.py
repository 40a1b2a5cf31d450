"""Who may ask for what only the operator should see. Keys are compared in constant time and told nowhere."""

import hmac
import ipaddress
from collections.abc import Iterable

from moonshard.config import RouterConfig, read_secret
from moonshard.errors import Unauthenticated
from moonshard.router.api_keys import key_in

FIELD = "router.operator_key_file"


class OperatorKey:
    """The guard of one router. Without a key only a router that listens on the loopback interface lets callers in."""

    def __init__(self, key: bytes | None, host: str) -> None:
        self._key = key
        self._open = key is None and is_loopback(host)

    @classmethod
    def read(cls, config: RouterConfig) -> "OperatorKey":
        """Raises ConfigError when the file cannot be read or is empty."""
        key = read_secret(FIELD, config.operator_key_file) if config.operator_key_file else None
        return cls(key.encode() if key else None, config.host)

    def check(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Raises Unauthenticated unless the call's metadata hold `authorization: Bearer KEY` or `x-api-key: KEY`."""
        if self._open:
            return
        if self._key is None:
            raise Unauthenticated(f"needs the operator's key, and this router has none: set {FIELD}")
        if not hmac.compare_digest(key_in(metadata) or b"", self._key):
            raise Unauthenticated("needs the operator's key as metadata `authorization: Bearer KEY`")


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
