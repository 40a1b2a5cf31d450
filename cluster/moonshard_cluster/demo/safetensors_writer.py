"""Writes a safetensors file as a stream: the header first, then the tensors one by one.

The format: 8 bytes length of the header, the header as JSON, the tensors' bytes without gaps.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from moonshard.model.inventory import TensorSpec

_BUFFER_BYTES = 1 << 20


class TensorFile:
    """A context manager. Tensors are written in the announced order, every one of them in full."""

    def __init__(self, path: Path, tensors: Sequence[TensorSpec]) -> None:
        self._path, self._tensors = path, tensors
        self._num_written = 0

    def __enter__(self) -> "TensorFile":
        self._file: BinaryIO = self._path.open("xb", buffering=_BUFFER_BYTES)
        self._file.write(_header(self._tensors))
        return self

    def write(self, tensor: TensorSpec, pieces: Iterable[bytes | memoryview]) -> None:
        """Write the next tensor's bytes."""
        assert tensor is self._tensors[self._num_written], f"{tensor.name} is not the next tensor of {self._path}"
        num_bytes = sum(self._file.write(piece) for piece in pieces)
        assert num_bytes == tensor.num_bytes, f"{tensor.name}: {num_bytes} bytes, expected {tensor.num_bytes}"
        self._num_written += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        assert kind or self._num_written == len(self._tensors), f"{self._path}: tensors are missing"


def _header(tensors: Sequence[TensorSpec]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for tensor in tensors:
        end = start + tensor.num_bytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (start, end)}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
