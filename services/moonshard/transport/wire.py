"""The wire: a fixed header that describes its message, and payloads of plain tensors. Pure: no sockets, no waiting.

A message is HEADER_BYTES of header (little-endian, see _HEADER), then `payload_bytes` of payload:
    DISPATCH  ids int32 [R, K], weights float32 [R, K], rows row_dtype [R, D]
    REPLY     rows row_dtype [R, D]; with sums by expert [P, D], for the P ids of the DISPATCH that are not -1
    HELLO     JSON: the sender's WireSpec, its source number and the shard it believes to call
    WELCOME   JSON: {"max_rows": ...}
    REFUSE    text: why the handshake failed;  ERROR  text: why the link is closed
The header carries its own CRC-32; payloads have none, the socket's own integrity is trusted with them.
"""

import json
import struct
import zlib
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from moonshard.errors import ProtocolMismatch
from moonshard.transport.contract import WireSpec

Bytes = NDArray[np.uint8]

MAGIC = b"MNSD"
VERSION = 1
HEADER_BYTES = 64
CONTROL_BYTES_MAX = 64 * 1024
# magic, version, kind, dtype, step, epoch, layer, source, num_rows, hidden_size, top_k, payload_bytes, (12 unused), CRC
_HEADER = struct.Struct("<4sHBBQIiiIIIQ12xI")
_CHECKSUM = struct.Struct("<I")
_BODY_BYTES = HEADER_BYTES - _CHECKSUM.size
_DTYPE_CODES: dict[torch.dtype | None, int] = {None: 0, torch.float32: 1, torch.bfloat16: 2}
_DTYPES = {code: dtype for dtype, code in _DTYPE_CODES.items()}
_ITEM_BYTES = {torch.float32: 4, torch.bfloat16: 2}


class Kind(IntEnum):
    HELLO = 1
    WELCOME = 2
    REFUSE = 3
    DISPATCH = 4
    REPLY = 5
    ERROR = 6


_KINDS = {int(kind): kind for kind in Kind}


class Header(NamedTuple):
    """Who sends what. `source` is the attention worker of a DISPATCH and the shard of a REPLY; dtype None: no rows."""

    kind: Kind
    dtype: torch.dtype | None
    step: int
    epoch: int
    layer: int
    source: int
    num_rows: int
    hidden_size: int
    top_k: int
    payload_bytes: int


def pack_header(header: Header) -> bytes:
    kind, dtype, *numbers = header
    data = bytearray(HEADER_BYTES)
    _HEADER.pack_into(data, 0, MAGIC, VERSION, kind, _DTYPE_CODES[dtype], *numbers, 0)
    _CHECKSUM.pack_into(data, _BODY_BYTES, zlib.crc32(memoryview(data)[:_BODY_BYTES]))
    return bytes(data)


def parse_header(data: Bytes | bytes) -> Header:
    """The header at the start of `data`. Raises ProtocolMismatch naming the field, expected and found."""
    magic, version, kind, dtype, *numbers, checksum = _HEADER.unpack_from(data)  # type: ignore[arg-type]
    own_checksum = zlib.crc32(data[:_BODY_BYTES])  # type: ignore[arg-type]
    if (magic, version, checksum) != (MAGIC, VERSION, own_checksum):
        expect("header", "magic", MAGIC, magic)
        expect("header", "version", VERSION, version)
        expect("header", "checksum", own_checksum, checksum)
    if kind not in _KINDS:
        raise ProtocolMismatch(f"header: kind: expected one of {sorted(_KINDS)}, got {kind}")
    if dtype not in _DTYPES:
        raise ProtocolMismatch(f"header: dtype: expected one of {sorted(_DTYPES)}, got {dtype}")
    return Header(_KINDS[kind], _DTYPES[dtype], *numbers)


def expect(what: str, field: str, expected: object, found: object) -> None:
    if expected != found:
        raise ProtocolMismatch(f"{what}: {field}: expected {expected!r}, got {found!r}")


def dispatch_header(spec: WireSpec, source: int, step: int, layer: int, num_rows: int) -> Header:
    size = dispatch_bytes(spec, num_rows)
    return Header(
        Kind.DISPATCH, spec.row_dtype, step, spec.epoch, layer, source, num_rows, spec.hidden_size, spec.top_k, size
    )


def reply_header(spec: WireSpec, shard: int, step: int, layer: int, num_rows: int) -> Header:
    size = reply_bytes(spec, num_rows)
    return Header(
        Kind.REPLY, spec.row_dtype, step, spec.epoch, layer, shard, num_rows, spec.hidden_size, spec.top_k, size
    )


def dispatch_bytes(spec: WireSpec, num_rows: int) -> int:
    """Payload of a DISPATCH."""
    return num_rows * 8 * spec.top_k + reply_bytes(spec, num_rows)


def reply_bytes(spec: WireSpec, num_rows: int) -> int:
    """Payload of a REPLY with so many rows."""
    return num_rows * spec.hidden_size * _ITEM_BYTES[spec.row_dtype]


def reply_bytes_max(spec: WireSpec, num_rows: int) -> int:
    """Payload of a REPLY to so many rows, at most."""
    return reply_bytes(spec, num_rows * (spec.top_k if spec.sums == "expert" else 1))


def check_header(what: str, expected: Header, found: Header) -> None:
    """Raise ProtocolMismatch at the first field that differs. `what` names the message for the reader of the error."""
    if expected != found:
        for field, a, b in zip(Header._fields, expected, found, strict=True):
            expect(what, field, a, b)


def control(kind: Kind, payload: bytes, source: int = 0) -> tuple[bytes, bytes]:
    """Header and payload of a message without rows."""
    payload = payload[:CONTROL_BYTES_MAX]
    return pack_header(Header(kind, None, 0, 0, 0, source, 0, 0, 0, len(payload))), payload


def spec_fields(spec: WireSpec) -> dict[str, Any]:
    """What both ends compare, in JSON's types."""
    return {
        "hidden_size": spec.hidden_size,
        "top_k": spec.top_k,
        "num_experts": spec.num_experts,
        "num_shards": spec.num_shards,
        "moe_layers": list(spec.moe_layers),
        "row_dtype": str(spec.row_dtype).removeprefix("torch."),
        "checkpoint_id": spec.checkpoint_id,
        "epoch": spec.epoch,
        "sums": spec.sums,
    }


def check_fields(what: str, expected: dict[str, Any], found: object) -> None:
    """Compare what a peer announced with our own, field by field."""
    if not isinstance(found, dict):
        raise ProtocolMismatch(f"{what}: expected an object with {', '.join(expected)}, got {type(found).__name__}")
    for field, value in expected.items():
        expect(what, field, value, found.get(field))


def pack_json(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def parse_json(what: str, payload: Bytes | bytes) -> Any:
    try:
        return json.loads(bytes(payload))
    except ValueError as error:
        raise ProtocolMismatch(f"{what}: payload is not JSON: {error}") from None


def rows_to_bytes(x_RD: Tensor) -> Bytes:
    """The memory of contiguous CPU rows as uint8 [R, row bytes]; no copy."""
    rows: Bytes = x_RD.detach().view(torch.uint8).numpy()
    return rows


def bytes_to_rows(payload: Bytes, spec: WireSpec, num_rows: int) -> Tensor:
    """Rows [R, D] over the memory of `payload`; no copy."""
    return torch.from_numpy(payload).view(spec.row_dtype).view(num_rows, spec.hidden_size)


def split_dispatch(payload: Bytes, spec: WireSpec, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """ids_RK int32, weights_RK float32 and rows x_RD over the memory of a DISPATCH payload; no copy."""
    size = num_rows * spec.top_k * 4
    ids_RK = torch.from_numpy(payload[:size].view(np.int32)).view(num_rows, spec.top_k)
    weights_RK = torch.from_numpy(payload[size : 2 * size].view(np.float32)).view(num_rows, spec.top_k)
    return ids_RK, weights_RK, bytes_to_rows(payload[2 * size :], spec, num_rows)
