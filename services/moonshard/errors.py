"""Every error a caller of moonshard can meet.

    MoonshardError
    ├── ConfigError            a flag, a configuration file, or a value in config.json
    ├── CheckpointError        a file of the checkpoint: missing, truncated, wrong tensors
    ├── RequestError           the request itself is at fault          gRPC INVALID_ARGUMENT
    │   └── DuplicateRequest   its id is in use                        gRPC ALREADY_EXISTS
    ├── Unsupported            a call that this server has no use for  gRPC UNIMPLEMENTED
    ├── Overloaded             the queue is full                       gRPC RESOURCE_EXHAUSTED
    │   └── DeadlineTooClose   it would pass in the queue              gRPC RESOURCE_EXHAUSTED
    ├── DeadlineExceeded       the caller's deadline has passed        gRPC DEADLINE_EXCEEDED
    ├── Aborted                somebody ended the request by its id    gRPC ABORTED
    ├── Unauthenticated        the call's key is missing or wrong      gRPC UNAUTHENTICATED
    ├── FailedPrecondition     the cell's state forbids it now         gRPC FAILED_PRECONDITION
    ├── Unavailable            not ready, draining, or a worker lost   gRPC UNAVAILABLE
    └── TransportError         the data plane
        ├── ProtocolMismatch   a message that is not the expected one
        ├── PeerLost           the other side closed or died
        └── TransportTimeout   no answer within the limit

Messages name the field and both numbers: what was expected and what was found.
"""


class MoonshardError(Exception):
    """Base of all errors that are not our bugs."""


class ConfigError(MoonshardError):
    """A setting is wrong. `field` is the key as the user wrote it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class CheckpointError(MoonshardError):
    """A checkpoint cannot be served as it lies on disk."""


class RequestError(MoonshardError):
    """A request is refused; `field` names what is wrong in it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class DuplicateRequest(RequestError):
    """The request id is already in use."""


class Unsupported(MoonshardError):
    """A call of a contract that is served only in part."""


class Overloaded(MoonshardError):
    """The queue is full; trying again after `retry_after_s` seconds may succeed."""

    def __init__(self, problem: str, retry_after_s: float) -> None:
        super().__init__(f"{problem}; retry after {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class DeadlineTooClose(Overloaded):
    """The request's deadline would pass while it waits."""


class DeadlineExceeded(MoonshardError):
    """The request's deadline passed while it waited or ran."""


class Aborted(MoonshardError):
    """The request was ended by an Abort call."""


class Unauthenticated(MoonshardError):
    """The call needs a key and does not bring it."""


class FailedPrecondition(MoonshardError):
    """What was asked for would break what is served now; later it may be possible."""


class Unavailable(MoonshardError):
    """The cluster cannot serve now."""


class TransportError(MoonshardError):
    """The data plane failed."""


class ProtocolMismatch(TransportError):
    """A message disagrees with what the receiver expects."""


class PeerLost(TransportError):
    """The other end of a link is gone."""


class TransportTimeout(TransportError):
    """The other end did not answer within the limit."""
