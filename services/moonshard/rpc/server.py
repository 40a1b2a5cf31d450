"""The gRPC server of a process: health, reflection, limits, start and stop. Knows no service of ours by name."""

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from moonshard.errors import ConfigError
from moonshard.rpc.door import Door
from moonshard.rpc.status import ErrorInterceptor, Identify
from moonshard.rpc.tls import ServerTls, server_credentials

WHOLE_SERVER = ""
REFLECTION_V1 = "grpc.reflection.v1.ServerReflection"

# Milliseconds. A peer that vanished without a word is noticed after time + timeout.
KEEPALIVE = (
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
)


def message_limits(max_message_mb: int) -> tuple[tuple[str, int], ...]:
    """Channel or server options that allow messages of max_message_mb MiB both ways."""
    num_bytes = max_message_mb * 1024 * 1024
    return (("grpc.max_receive_message_length", num_bytes), ("grpc.max_send_message_length", num_bytes))


class RpcServer:
    """A grpc.aio server. Servicers are added to `.server` between the constructor and `start`.

    service_names: full names of those servicers, for reflection and for one health entry each. All entries, the
    whole server's included, start as NOT_SERVING.
    """

    def __init__(
        self,
        service_names: Iterable[str],
        max_message_mb: int,
        identify: Identify | None = None,
        tls: ServerTls | None = None,
        reflection: bool = True,
        max_connection_age_s: float = 0.0,
    ) -> None:
        """identify: raises for calls that may not be made. tls: None is plain text. max_connection_age_s: 0 is none."""
        self._credentials = server_credentials(tls) if tls else None
        # so_reuseport off: with it a second server on the same port starts happily and steals half the calls.
        options = [*KEEPALIVE, *message_limits(max_message_mb), ("grpc.so_reuseport", 0)]
        if max_connection_age_s:
            options.append(("grpc.max_connection_age_ms", round(max_connection_age_s * 1000)))
        self.door = Door()
        self.server = grpc.aio.server(interceptors=(ErrorInterceptor(identify, self.door.came),), options=options)
        self._reflection = reflection
        self._entries = (WHOLE_SERVER, *service_names)
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._stopping = False

    async def start(self, host: str, port: int, field: str) -> int:
        """Bind and serve; port 0 takes a free one. Returns the bound port.

        Raises ConfigError naming `field` and the port when it cannot be had.
        """
        for entry in self._entries:
            await self.set_serving(entry, False)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.server)
        if self._reflection:
            self._enable_reflection()
        try:
            bound = self._bind(f"{host}:{port}")
        except RuntimeError as error:
            raise ConfigError(field, f"cannot listen on {host}:{port}; is the port in use? ({error})") from None
        await self.server.start()
        return bound

    def _bind(self, address: str) -> int:
        if self._credentials:
            return self.server.add_secure_port(address, self._credentials)
        return self.server.add_insecure_port(address)

    def _enable_reflection(self) -> None:
        names = (*self._entries[1:], health.SERVICE_NAME, reflection.SERVICE_NAME, REFLECTION_V1)
        reflection.enable_server_reflection(names, self.server)
        self.server.add_generic_rpc_handlers((_reflection_v1(names),))

    async def set_serving(self, entry: str, serving: bool) -> None:
        """Health of one entry; WHOLE_SERVER is the server's own. Ignored once the server stops."""
        status = health_pb2.HealthCheckResponse
        if not self._stopping:
            await self._health.set(entry, status.SERVING if serving else status.NOT_SERVING)

    async def refuse_probes(self) -> None:
        """NOT_SERVING everywhere and for good: load balancers turn away while running calls go on."""
        if not self._stopping:
            self._stopping = True
            await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """Refuse new calls, give running ones grace_s seconds, then cancel them."""
        await self.refuse_probes()
        await self.server.stop(grace_s)


def _reflection_v1(service_names: Iterable[str]) -> "grpc.GenericRpcHandler[Any, Any]":
    # The package knows only v1alpha; v1 has the same messages under another service name.
    servicer = reflection.aio.ReflectionServicer(  # type: ignore[attr-defined]
        service_names, pool=descriptor_pool.Default()
    )
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(REFLECTION_V1, {"ServerReflectionInfo": method})
