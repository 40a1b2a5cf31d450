"""The first exchange on a link: HELLO with the sender's WireSpec, answered by WELCOME or by REFUSE with the reason."""

from dataclasses import dataclass
from typing import Any

from moonshard.errors import ProtocolMismatch
from moonshard.transport import wire
from moonshard.transport.contract import WireSpec
from moonshard.transport.links.stream import Message
from moonshard.transport.wire import Kind

_SOURCES_MAX = 1024


@dataclass(frozen=True, slots=True)
class Hello:
    source: int


def hello(spec: WireSpec, source: int, shard: int) -> tuple[bytes, bytes]:
    payload = wire.pack_json({**wire.spec_fields(spec), "shard": shard})
    return wire.control(Kind.HELLO, payload, source)


def read_hello(message: Message, spec: WireSpec, shard: int) -> Hello:
    """Check a newcomer's announcement against our own. Raises ProtocolMismatch naming field, expected and found."""
    header, payload = message
    wire.expect("handshake", "kind", Kind.HELLO.name, header.kind.name)
    fields: Any = wire.parse_json("handshake", payload)
    wire.check_fields("handshake", {**wire.spec_fields(spec), "shard": shard}, fields)
    if not 0 <= header.source < _SOURCES_MAX:
        raise ProtocolMismatch(f"handshake: source: expected one of 0..{_SOURCES_MAX - 1}, got {header.source}")
    return Hello(header.source)


def welcome(max_rows: int, instance: str) -> tuple[bytes, bytes]:
    return wire.control(Kind.WELCOME, wire.pack_json({"max_rows": max_rows, "instance": instance}))


def read_answer(message: Message) -> tuple[int, str]:
    """max_rows and instance of a WELCOME; a process that is started again is another instance.

    Raises ProtocolMismatch with the shard's words when it refused.
    """
    header, payload = message
    if header.kind in (Kind.REFUSE, Kind.ERROR):
        raise ProtocolMismatch(f"refused: {text(payload)}")
    wire.expect("handshake", "kind", Kind.WELCOME.name, header.kind.name)
    fields = wire.parse_json("handshake", payload)
    if not isinstance(fields, dict) or not isinstance(fields.get("max_rows"), int):
        raise ProtocolMismatch(f"handshake: max_rows: expected a number, got {fields!r}")
    max_rows: int = fields["max_rows"]
    return max_rows, str(fields.get("instance", ""))


def text(payload: wire.Bytes) -> str:
    """The words of a REFUSE or an ERROR."""
    return bytes(payload).decode(errors="replace")
