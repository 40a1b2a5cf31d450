"""Who makes the call that is being served, for whoever asks within it: set at its start, seen in its task only."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Caller:
    """tenant: who pays. priority: among the tenant's own requests. deadline_s: on time.monotonic's clock.

    traced: who asks for this may have its routing read, by the operator only.
    """

    tenant: str = ""
    priority: int = 0
    deadline_s: float | None = None
    traced: bool = False


NOBODY = Caller()
_current: ContextVar[Caller] = ContextVar("caller", default=NOBODY)


def current_caller() -> Caller:
    """NOBODY outside of a call."""
    return _current.get()


def set_caller(caller: Caller) -> None:
    _current.set(caller)
