"""Certificates of the gRPC ports: read from files, checked, and read again when the files change."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from moonshard.config import RouterConfig
from moonshard.errors import ConfigError

logger = logging.getLogger(__name__)

# One trusted name for whoever dials an address that the certificate does not name.
NAME_OVERRIDE = "grpc.ssl_target_name_override"

Options = tuple[tuple[str, Any], ...]

# (modification time in nanoseconds, length) of each file.
_Stamps = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ServerTls:
    """PEM files. client_ca: clients must bring a certificate that it signed (mutual TLS)."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.cert, self.key) + ((self.client_ca,) if self.client_ca else ())


@dataclass(frozen=True, slots=True)
class ClientTls:
    """PEM files. ca: whom to trust, the system's authorities when None. cert, key: who we are, for mutual TLS.

    server_name: the name to find in the server's certificate, when it is dialled by another.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""


def server_tls(config: RouterConfig) -> ServerTls | None:
    """None: plain text. Raises ConfigError when one file is named without the other."""
    if config.tls_cert is None and config.tls_key is None:
        if config.tls_client_ca is not None:
            raise ConfigError("router.tls_client_ca", "needs router.tls_cert and router.tls_key, which are not set")
        return None
    if config.tls_cert is None:
        raise ConfigError("router.tls_cert", "is required with router.tls_key")
    if config.tls_key is None:
        raise ConfigError("router.tls_key", "is required with router.tls_cert")
    return ServerTls(config.tls_cert, config.tls_key, config.tls_client_ca)


def worker_tls(config: RouterConfig) -> ClientTls | None:
    """How this cell's own programs dial its router: they trust tls_ca, or else the router's very certificate, and bring
    tls_worker_cert, or else that certificate. None: plain text."""
    if config.tls_cert is None:
        return None
    cert, key = config.tls_worker_cert, config.tls_worker_key
    if cert is None and config.tls_client_ca is not None:
        cert, key = config.tls_cert, config.tls_key
    return ClientTls(config.tls_ca or config.tls_cert, cert, key, config.tls_server_name)


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """Handshakes use what the files hold at that moment; what cannot be read then is logged and the former stays.

    Raises ConfigError naming the setting when the files are no certificate and its key now.
    """
    files = _Files(tls)
    fetch: Any = files.fetch  # None, which the type stubs forget, is "nothing has changed"
    return grpc.dynamic_ssl_server_credentials(files.read(), fetch, tls.client_ca is not None)


@dataclass
class _Files:
    """Called by gRPC's threads at each handshake: cheap while nothing has changed."""

    tls: ServerTls
    _seen: _Stamps = field(default=())

    def read(self) -> grpc.ServerCertificateConfiguration:
        self._seen = _stamps(self.tls)
        key, cert = _pem("router.tls_key", self.tls.key), _pem("router.tls_cert", self.tls.cert)
        ca = _pem("router.tls_client_ca", self.tls.client_ca) if self.tls.client_ca else None
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca)

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        try:
            if _stamps(self.tls) == self._seen:
                return None
            found = self.read()
        except (OSError, ConfigError) as error:
            logger.error("the certificates changed and cannot be used, the former stay: %s", error)
            return None
        logger.info("certificates read anew")
        return found


def channel_credentials(tls: ClientTls) -> grpc.ChannelCredentials:
    """Raises ConfigError naming the setting when a file cannot be read."""
    if (tls.cert is None) != (tls.key is None):
        raise ConfigError("tls_cert", "and tls_key go together: one of them is not set")
    return grpc.ssl_channel_credentials(
        root_certificates=_pem("tls_ca", tls.ca) if tls.ca else None,
        private_key=_pem("tls_key", tls.key) if tls.key else None,
        certificate_chain=_pem("tls_cert", tls.cert) if tls.cert else None,
    )


def open_channel(address: str, tls: ClientTls | None, options: Options = ()) -> grpc.Channel:
    """A blocking channel; tls None is plain text."""
    if tls is None:
        return grpc.insecure_channel(address, options=options)
    return grpc.secure_channel(address, channel_credentials(tls), options=(*options, *_name_option(tls)))


def open_async_channel(address: str, tls: ClientTls | None, options: Options = ()) -> grpc.aio.Channel:
    """The same for asyncio."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, channel_credentials(tls), options=(*options, *_name_option(tls)))


def _name_option(tls: ClientTls) -> Options:
    return ((NAME_OVERRIDE, tls.server_name),) if tls.server_name else ()


def _stamps(tls: ServerTls) -> _Stamps:
    stats = [path.stat() for path in tls.files]
    return tuple((found.st_mtime_ns, found.st_size) for found in stats)


def _pem(setting: str, path: Path) -> bytes:
    try:
        found = path.read_bytes()
    except OSError as error:
        raise ConfigError(setting, f"cannot read {path}: {error.strerror}") from None
    if b"-----BEGIN " not in found:
        raise ConfigError(setting, f"{path} is not PEM: it has no -----BEGIN line")
    return found
