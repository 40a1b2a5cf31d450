"""Who may call Inference and for which tenant: keys from a file, read again when it changes. Told nowhere.

One key a line: TENANT KEY [WEIGHT]. A tenant may have several keys, so that they can be changed one after the other;
its weight in the fair queue is 1 unless a line says otherwise. Empty lines and lines that begin with # are passed over.
"""

import hashlib
import hmac
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from moonshard.errors import ConfigError, MoonshardError, Unauthenticated

logger = logging.getLogger(__name__)

FIELD = "router.api_keys_file"
MIN_KEY_LENGTH = 8
Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """tenants: by the SHA-256 of a key; the keys themselves are not kept. weights: by tenant."""

    tenants: Mapping[bytes, str]
    weights: Mapping[str, float]

    def tenant_of(self, metadata: Metadata) -> str:
        """Raises Unauthenticated unless the metadata hold a key: `authorization: Bearer KEY` or `x-api-key: KEY`."""
        given = key_in(metadata)
        if given is None:
            raise Unauthenticated("needs a key as metadata `authorization: Bearer KEY` or `x-api-key: KEY`")
        digest = hashlib.sha256(given).digest()
        # Every key is compared, each in constant time: how long it takes tells nothing of any of them.
        found = [tenant for known, tenant in self.tenants.items() if hmac.compare_digest(known, digest)]
        if not found:
            raise Unauthenticated("the key is not known here")
        return found[0]


def key_in(metadata: Metadata) -> bytes | None:
    """The key that a call brings, None when it brings none."""
    given = {name: value if isinstance(value, bytes) else value.encode() for name, value in metadata}
    scheme, _, key = given.get("authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer" and key:
        return key
    return given.get("x-api-key")


def parse_keys(text: str, path: Path) -> ApiKeys:
    """Raises ConfigError naming the line; keys are never part of the message."""
    tenants: dict[bytes, str] = {}
    weights: dict[str, float] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        tenant, key, weight = _fields(line, f"{path}:{number}")
        digest = hashlib.sha256(key.encode()).digest()
        if tenants.setdefault(digest, tenant) != tenant:
            raise ConfigError(FIELD, f"{path}:{number}: the key of {tenant!r} is another tenant's already")
        if weight is not None or tenant not in weights:
            weights[tenant] = weight or 1.0
    if not tenants:
        raise ConfigError(FIELD, f"{path} holds no key")
    return ApiKeys(tenants, weights)


def _fields(line: str, where: str) -> tuple[str, str, float | None]:
    fields = line.split()
    if not 2 <= len(fields) <= 3:
        raise ConfigError(FIELD, f"{where}: expected TENANT KEY [WEIGHT], found {len(fields)} words")
    if len(fields[1]) < MIN_KEY_LENGTH:
        raise ConfigError(FIELD, f"{where}: a key has at least {MIN_KEY_LENGTH} characters, found {len(fields[1])}")
    return fields[0], fields[1], _weight(fields[2], where) if len(fields) == 3 else None


def _weight(text: str, where: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = 0.0
    if not 0.0 < weight < 1e6:
        raise ConfigError(FIELD, f"{where}: a weight is a number above 0 and below 1000000, found {text!r}")
    return weight


class KeysFile:
    """The keys as the file has them. A change that cannot be used is logged and the former keys stay."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError when there is no usable file now."""
        self._path = path
        self._seen = (0, 0)
        self._keys = self._read()

    def current(self) -> ApiKeys:
        try:
            if self._stamp() != self._seen:
                self._keys = self._read()
                logger.info(
                    "API keys read anew: %d keys of %d tenants", len(self._keys.tenants), len(self._keys.weights)
                )
        except (OSError, MoonshardError) as error:
            logger.error("the API keys changed and cannot be used, the former stay: %s", error)
            self._seen = self._stamp_or_none()
        return self._keys

    def _read(self) -> ApiKeys:
        try:
            self._seen = self._stamp()
            text = self._path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(FIELD, f"cannot read {self._path}: {error}") from None
        return parse_keys(text, self._path)

    def _stamp(self) -> tuple[int, int]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_size

    def _stamp_or_none(self) -> tuple[int, int]:
        try:
            return self._stamp()
        except OSError:
            return 0, 0
