"""Errors as gRPC statuses: the one table, and the interceptor that applies it to every method of ours.

Knows nothing of requests or workers. An error that is no MoonshardError is a bug of ours: it is logged with its
traceback, answered INTERNAL, and the server goes on.
"""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status

from moonshard.errors import (
    Aborted,
    ConfigError,
    DeadlineExceeded,
    DuplicateRequest,
    FailedPrecondition,
    MoonshardError,
    Overloaded,
    RequestError,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from moonshard.rpc.caller import NOBODY, Caller, set_caller

logger = logging.getLogger(__name__)

OUR_METHODS = ("/moonshard.", "/vllm.grpc.engine.")
RETRY_AFTER = "retry-after"  # seconds, as HTTP's header of that name
STATUS_DETAILS = "grpc-status-details-bin"

# The first class that fits decides: subclasses stand before their bases.
CODES: tuple[tuple[type[MoonshardError], grpc.StatusCode], ...] = (
    (DuplicateRequest, grpc.StatusCode.ALREADY_EXISTS),
    (RequestError, grpc.StatusCode.INVALID_ARGUMENT),
    (Unsupported, grpc.StatusCode.UNIMPLEMENTED),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (DeadlineExceeded, grpc.StatusCode.DEADLINE_EXCEEDED),
    (Aborted, grpc.StatusCode.ABORTED),
    (Unauthenticated, grpc.StatusCode.UNAUTHENTICATED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (ConfigError, grpc.StatusCode.FAILED_PRECONDITION),
    (FailedPrecondition, grpc.StatusCode.FAILED_PRECONDITION),
)


@dataclass(frozen=True, slots=True)
class RpcStatus:
    """What a failed call ends with."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...] = ()


def status_of(error: Exception) -> RpcStatus:
    """The status for an error; a bug's status tells its class only, the log tells the rest."""
    for kind, code in CODES:
        if isinstance(error, kind):
            return RpcStatus(code, str(error), _retry_hint(error, code))
    return RpcStatus(grpc.StatusCode.INTERNAL, f"internal error ({type(error).__name__}); see the server's log")


def _retry_hint(error: MoonshardError, code: grpc.StatusCode) -> tuple[tuple[str, str | bytes], ...]:
    if not isinstance(error, Overloaded):
        return ()
    delay = Duration()
    delay.FromMilliseconds(round(error.retry_after_s * 1000))
    detail = AnyMessage()
    detail.Pack(RetryInfo(retry_delay=delay))
    # `code.value` is (number, name).
    status = Status(code=code.value[0], message=str(error), details=[detail])
    return ((RETRY_AFTER, f"{error.retry_after_s:g}"), (STATUS_DETAILS, status.SerializeToString()))


# (/package.Service/Method, the call's metadata) to who makes it; raises when the call may not be made.
Identify = Callable[[str, Any], Caller]


# Bytes to a message; raises DecodeError.
Read = Callable[[Any], Any]


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Ends a call whose servicer raised with the status of the error.

    Streaming servicers are async generators. Their messages are written from here, so that a cancelled call closes the
    generator at once: its `finally` runs then and there, not when the garbage collector comes by. identify: see
    Identify; what it finds, and the call's deadline, is `current_caller()` within the call.
    """

    def __init__(self, identify: Identify | None = None, came: Callable[[], None] | None = None) -> None:
        """came: told of every call."""
        self._identify = identify
        self._came = came

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        if self._came:
            self._came()
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        caller, method = NOBODY, handler_call_details.method
        try:
            if self._identify:
                caller = self._identify(method, handler_call_details.invocation_metadata)
        except MoonshardError as error:
            return _refusing(handler, error)
        return _guarded(handler, caller) if method.startswith(OUR_METHODS) else handler


def _refusing(handler: Any, error: MoonshardError) -> Any:
    """A handler of the same kind that ends every call with the error, its request unread."""

    async def call(_: Any, context: Any) -> None:
        await _abort(context, error)

    streams = "stream" if handler.request_streaming else "unary", "stream" if handler.response_streaming else "unary"
    make: Any = getattr(grpc, "_".join((*streams, "rpc_method_handler")))
    return make(call)


def _guarded(handler: Any, caller: Caller) -> Any:
    read, write = handler.request_deserializer, {"response_serializer": handler.response_serializer}
    # A single request is read here: bytes that are no message are the caller's fault, which gRPC itself would not say.
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(_guard_unary(handler.unary_unary, read, caller), **write)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(_guard_stream(handler.unary_stream, read, caller), **write)
    assert handler.stream_stream, "our contracts have no client-streaming method with a single answer"
    guarded = _guard_stream(handler.stream_stream, _as_it_is, caller)
    return grpc.stream_stream_rpc_method_handler(guarded, request_deserializer=read, **write)


def _guard_unary(method: Callable[[Any, Any], Awaitable[Any]], read: Read, caller: Caller) -> Any:
    async def call(request: Any, context: Any) -> Any:
        set_caller(_with_deadline(caller, context))
        try:
            return await method(_read(read, request), context)
        except Exception as error:  # noqa: BLE001 - the outermost frame of a call
            await _abort(context, error)

    return call


def _guard_stream(method: Callable[[Any, Any], AsyncIterator[Any]], read: Read, caller: Caller) -> Any:
    async def call(request: Any, context: Any) -> None:
        set_caller(_with_deadline(caller, context))
        try:
            async with aclosing(method(_read(read, request), context)) as messages:  # type: ignore[type-var]
                async for message in messages:
                    await context.write(message)
        except Exception as error:  # noqa: BLE001 - the outermost frame of a call
            await _abort(context, error)

    return call


def _read(read: Read, request: Any) -> Any:
    try:
        return read(request)
    except DecodeError as error:
        raise RequestError("request", f"is no message of this method: {error}") from None


def _as_it_is(request: Any) -> Any:
    return request


def _with_deadline(caller: Caller, context: Any) -> Caller:
    left_s = context.time_remaining()
    return caller if left_s is None else replace(caller, deadline_s=time.monotonic() + left_s)


async def _abort(context: Any, error: Exception) -> None:
    if context.done():  # the caller left while we wrote: nobody to tell
        return
    if not isinstance(error, MoonshardError):
        logger.error("a call failed", exc_info=error)
    status = status_of(error)
    try:
        await context.abort(status.code, status.details, status.trailing_metadata)
    except grpc.aio.AbortError:
        raise
    except Exception as failure:  # noqa: BLE001 - gRPC's class for it is private
        # The deadline passed, or the caller left, while we told: gRPC has no call any more to end.
        logger.debug("a status found nobody: %s", failure)
