"""One safetensors file, read by byte range: header parser and positioned reads, no mmap.

Layout: 8 bytes header length (little-endian), a JSON object {name: {dtype, shape, data_offsets}}, then the data. Every
byte read is counted. Knows nothing about models.
"""

import json
import os
from collections.abc import Callable
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from moonshard.errors import CheckpointError

DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
_CHUNK_BYTES = 32 << 20


class Entry(NamedTuple):
    """A tensor's place: `begin` and `end` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class SafetensorsFile:
    """An open file with its parsed header. Raises CheckpointError naming the file and what is wrong."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes_read = 0
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise CheckpointError(f"{path.name}: cannot open {path}: {reason}") from None
        try:
            self._size = os.fstat(self._fd).st_size
            self.entries = self._read_header()
        except BaseException:
            self.close()
            raise

    def read(self, entry: Entry, buffer: memoryview, progress: Callable[[int], None] | None = None) -> None:
        """Fill `buffer` (bytes, exactly the entry's length); `progress` gets the count of each piece."""
        assert len(buffer) == entry.end - entry.begin, (len(buffer), entry)
        self._fill(buffer, entry.begin, progress)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _fill(self, buffer: memoryview, position: int, progress: Callable[[int], None] | None = None) -> None:
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done : done + _CHUNK_BYTES]], position + done)
            except OSError as error:
                raise self._error(f"cannot read {self.path}: {error.strerror}") from None
            if count == 0:
                raise CheckpointError(
                    f"{self.path.name}: truncated: expected {position + len(buffer)} bytes, found {position + done}"
                )
            done += count
            self.bytes_read += count
            if progress:
                progress(count)

    def _read_header(self) -> dict[str, Entry]:
        if self._size < _LENGTH_BYTES:
            raise self._error(f"truncated: expected at least {_LENGTH_BYTES} bytes, found {self._size}")
        length = int.from_bytes(self._bytes(0, _LENGTH_BYTES), "little")
        if length > _MAX_HEADER_BYTES:
            raise self._error(f"not a safetensors file: header length {length} exceeds {_MAX_HEADER_BYTES} bytes")
        data_begin = _LENGTH_BYTES + length
        if data_begin > self._size:
            raise self._error(f"truncated: the header ends at byte {data_begin}, the file at {self._size}")
        try:
            header = json.loads(self._bytes(_LENGTH_BYTES, length))
        except (ValueError, RecursionError) as error:
            raise self._error(f"header is not JSON: {error}") from None
        if not isinstance(header, dict):
            raise self._error(f"header must be a JSON object, found {type(header).__name__}")
        header.pop("__metadata__", None)
        entries = {name: self._entry(name, value, data_begin) for name, value in header.items()}
        self._check_layout(entries, data_begin)
        return entries

    def _bytes(self, position: int, length: int) -> bytes:
        buffer = bytearray(length)
        self._fill(memoryview(buffer), position)
        return bytes(buffer)

    def _entry(self, name: str, value: Any, data_begin: int) -> Entry:
        try:
            dtype, shape, (begin, end) = value["dtype"], tuple(value["shape"]), value["data_offsets"]
        except (TypeError, KeyError, ValueError):
            raise self._error(
                f"tensor {name}: header entry must have dtype, shape, data_offsets; found {value!r}"
            ) from None
        numbers = (*shape, begin, end)
        if not isinstance(dtype, str) or not all(type(n) is int and n >= 0 for n in numbers) or begin > end:
            raise self._error(f"tensor {name}: header entry holds wrong values: {value!r}")
        expected = prod(shape) * DTYPE_BYTES.get(dtype, 0)
        if dtype in DTYPE_BYTES and expected != end - begin:
            raise self._error(
                f"tensor {name}: {dtype} {list(shape)} takes {expected} bytes, data_offsets span {end - begin}"
            )
        return Entry(dtype, shape, data_begin + begin, data_begin + end)

    def _check_layout(self, entries: dict[str, Entry], data_begin: int) -> None:
        placed = sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end))
        for (name, entry), (following, next_) in pairwise(placed):
            if entry.end > next_.begin:
                raise self._error(
                    f"tensor {following}: data_offsets overlap tensor {name}: "
                    f"begins at byte {next_.begin}, expected at least {entry.end}"
                )
        end = placed[-1][1].end if placed else data_begin
        if end > self._size:
            raise self._error(f"truncated: tensor {placed[-1][0]} ends at byte {end}, the file at {self._size}")

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path.name}: {problem}")
