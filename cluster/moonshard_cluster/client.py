"""A synchronous client of a running cell, for the command line."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from moonshard.errors import (
    FailedPrecondition,
    MoonshardError,
    Overloaded,
    RequestError,
    Unauthenticated,
    Unavailable,
)
from moonshard.rpc.tls import open_channel
from moonshard.v1 import control_pb2, inference_pb2
from moonshard.v1.control_pb2_grpc import ClusterStub
from moonshard.v1.inference_pb2_grpc import InferenceStub
from moonshard_cluster.access import Access, given_access

DEFAULT_ROUTER = "127.0.0.1:50051"
STATUS_TIMEOUT_S = 5.0


class Client:
    """Stubs of one router. Every call has a deadline; failures are the errors of errors.py.

    access: what the command line was told when None. Raises ConfigError when a file of it cannot be used.
    """

    def __init__(self, address: str = DEFAULT_ROUTER, access: Access | None = None) -> None:
        self.address = address
        self._access = access or given_access()
        self._channel = open_channel(address, self._access.tls)
        self._inference = InferenceStub(self._channel)
        self._cluster = ClusterStub(self._channel)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def status(self) -> control_pb2.GetStatusResponse:
        with self._failures():
            return self._cluster.GetStatus(
                control_pb2.GetStatusRequest(), timeout=STATUS_TIMEOUT_S, metadata=self._access.operator_metadata
            )

    def load(self, window_s: float) -> control_pb2.GetLoadResponse:
        """Expert load over the last window_s seconds, 0 since the router's start."""
        request = control_pb2.GetLoadRequest(window_s=window_s)
        with self._failures():
            return self._cluster.GetLoad(request, timeout=STATUS_TIMEOUT_S, metadata=self._access.operator_metadata)

    def placement(self) -> control_pb2.GetPlacementResponse:
        """Where experts are."""
        with self._failures():
            return self._cluster.GetPlacement(
                control_pb2.GetPlacementRequest(), timeout=STATUS_TIMEOUT_S, metadata=self._access.operator_metadata
            )

    def apply_placement(
        self, request: control_pb2.ApplyPlacementRequest, timeout_s: float
    ) -> Iterator[control_pb2.PlacementProgress]:
        """A message for each layer that is as asked for. Raises RequestError for layers that cannot be,
        FailedPrecondition when it is not the time; after timeout_s it ends between two copies."""
        with self._failures():
            yield from self._cluster.ApplyPlacement(request, timeout=timeout_s, metadata=self._access.operator_metadata)

    def pin(self, pin: control_pb2.Pin) -> control_pb2.GetPlacementResponse:
        """Raises RequestError for what does not exist."""
        request = control_pb2.PinExpertRequest(pin=pin)
        with self._failures():
            return self._cluster.PinExpert(request, timeout=STATUS_TIMEOUT_S, metadata=self._access.operator_metadata)

    def drain(
        self, role: control_pb2.Role.ValueType, rank: int, waits: bool, finish_s: float | None, timeout_s: float
    ) -> Iterator[control_pb2.DrainProgress]:
        """Progress of a worker, or of the router, that leaves service. Raises FailedPrecondition when the cell cannot
        spare it, Unavailable after timeout_s; what has begun goes on."""
        request = control_pb2.DrainRequest(role=role, rank=rank, waits=waits, finish_s=finish_s)
        with self._failures():
            yield from self._cluster.Drain(request, timeout=timeout_s, metadata=self._access.operator_metadata)

    def undrain(self, role: control_pb2.Role.ValueType, rank: int) -> None:
        """Put a drained worker back into service. Raises FailedPrecondition."""
        request = control_pb2.DrainRequest(role=role, rank=rank, undo=True)
        with self._failures():
            list(self._cluster.Drain(request, timeout=STATUS_TIMEOUT_S, metadata=self._access.operator_metadata))

    def trace(self, request_id: str) -> control_pb2.GetTraceResponse:
        """The routing of a traced request; "" tells which there are. RequestError when none of this id is kept."""
        request = control_pb2.GetTraceRequest(request_id=request_id)
        with self._failures():
            return self._cluster.GetTrace(request, timeout=STATUS_TIMEOUT_S, metadata=self._access.operator_metadata)

    def model(self) -> inference_pb2.GetModelResponse:
        with self._failures():
            return self._inference.GetModel(
                inference_pb2.GetModelRequest(), timeout=STATUS_TIMEOUT_S, metadata=self._access.api_metadata
            )

    def generate(
        self, request: inference_pb2.GenerateRequest, timeout_s: float
    ) -> Iterator[inference_pb2.GenerateResponse]:
        with self._failures():
            yield from self._inference.Generate(request, timeout=timeout_s, metadata=self._access.api_metadata)

    def chat(self, request: inference_pb2.ChatRequest, timeout_s: float) -> Iterator[inference_pb2.ChatResponse]:
        with self._failures():
            yield from self._inference.Chat(request, timeout=timeout_s, metadata=self._access.api_metadata)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            raise translate(error, self.address) from None


def translate(error: grpc.RpcError, address: str) -> MoonshardError:
    """A failed call of the router at `address` as one of our errors."""
    code, details = error.code(), error.details() or ""
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.ALREADY_EXISTS):
        field, _, problem = details.partition(": ")
        return RequestError(field, problem)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return Overloaded(details, retry_after_s=1.0)
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        return FailedPrecondition(details)
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return Unauthenticated(f"the router at {address}: {details}")
    return Unavailable(f"the router at {address} answers {code.name}: {details}")
