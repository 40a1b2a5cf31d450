"""How the command line and the launcher are let in by a router: certificates and keys, from files, never arguments."""

from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from moonshard.config import RouterConfig, read_secret
from moonshard.rpc.tls import ClientTls, worker_tls

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Access:
    """tls: None dials in plain text. The keys are for Inference and for Cluster; repr and logs do not show them."""

    tls: ClientTls | None = None
    api_key: str | None = field(default=None, repr=False)
    operator_key: str | None = field(default=None, repr=False)

    @classmethod
    def of_files(
        cls,
        tls_ca: Path | None,
        tls_cert: Path | None,
        tls_key: Path | None,
        api_key_file: Path | None,
        operator_key_file: Path | None,
        server_name: str = "",
    ) -> "Access":
        """What the command line was told. Raises ConfigError naming the option whose file cannot be used."""
        secure = any((tls_ca, tls_cert, tls_key))
        return cls(
            ClientTls(tls_ca, tls_cert, tls_key, server_name) if secure else None,
            read_secret("--api-key-file", api_key_file) if api_key_file else None,
            read_secret("--operator-key-file", operator_key_file) if operator_key_file else None,
        )

    @classmethod
    def of_config(cls, router: RouterConfig) -> "Access":
        """The launcher's own way into the cell that it started. Raises ConfigError."""
        operator = router.operator_key_file
        return cls(
            worker_tls(router),
            first_api_key(router.api_keys_file) if router.api_keys_file else None,
            read_secret("router.operator_key_file", operator) if operator else None,
        )

    @property
    def api_metadata(self) -> Metadata:
        return _bearer(self.api_key)

    @property
    def operator_metadata(self) -> Metadata:
        return _bearer(self.operator_key)


# Not click's context: typer brings a click of its own, which the package click knows nothing of.
_given: ContextVar[Access | None] = ContextVar("access", default=None)


def give_access(access: Access) -> None:
    """What the options before the subcommand said, for the command that follows."""
    _given.set(access)


def given_access() -> Access:
    """As `give_access` was told; plain text and no keys outside of the command line."""
    return _given.get() or Access()


def first_api_key(path: Path) -> str | None:
    """Of a file of lines TENANT KEY [WEIGHT], which the router has checked or will."""
    lines = (line.split() for line in path.read_text().splitlines() if not line.lstrip().startswith("#"))
    return next((fields[1] for fields in lines if len(fields) >= 2), None)


def _bearer(key: str | None) -> Metadata:
    return (("authorization", f"Bearer {key}"),) if key else ()
