"""A checkpoint directory: which file holds which tensor, checked against the inventory, read by byte range.

A role checks and reads only its own tensors; the header of a file is read only when the index says that it holds
one of them. Names are compared in the plain form of `inventory.plain_name`, so prefix and alias forms are the same.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from moonshard.errors import CheckpointError
from moonshard.model.config import ModelConfig
from moonshard.model.inventory import TensorSpec, expected_tensors, is_ignorable, plain_name, projection_shape
from moonshard.model.safetensors_file import Entry, SafetensorsFile

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
Progress = Callable[[int, int], None]

_TORCH_DTYPE = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I32": torch.int32,
    "I64": torch.int64,
}
_FLOATS = ("BF16", "F16", "F32")


class Place(NamedTuple):
    """Where the index puts a tensor: its published name there, and the file."""

    name: str
    file: str


class Read(NamedTuple):
    """One tensor of the checkpoint and where its values go; the destination's dtype may differ among floats."""

    spec: TensorSpec
    destination: Tensor


class Checkpoint:
    """The weights in one directory. Construction reads the index and compares all names with the configuration.

    Raises CheckpointError naming tensor, file, what was expected and what was found; ConfigError for a weight
    format that cannot be loaded.
    """

    def __init__(self, path: Path, config: ModelConfig) -> None:
        config.require_loadable()
        self.path = path
        self.config = config
        self._index_bytes = 0
        self._files: dict[str, SafetensorsFile] = {}
        try:
            self._places = _by_plain_name(self._read_index())
            self._check_names()
        except BaseException:
            self.close()
            raise

    @property
    def bytes_read(self) -> int:
        """Every byte read so far: index, headers and data."""
        return self._index_bytes + sum(file.bytes_read for file in self._files.values())

    def check(self, specs: Iterable[TensorSpec]) -> None:
        """Compare dtype, shape and place of these tensors with their files' headers; values of `weight_shape` too."""
        for spec in specs:
            self._check_header(spec)
            if spec.name.endswith(".weight_shape"):
                self._check_weight_shape(spec)

    def fingerprint(self, specs: Iterable[TensorSpec]) -> str:
        """What tells these tensors' values from those of another checkpoint without reading them.

        The configuration, and name, size and time of change of the files that hold them.
        """
        files = sorted({self._places[plain_name(spec.name)].file for spec in specs})
        stats = [(name, (found := (self.path / name).stat()).st_size, found.st_mtime_ns) for name in files]
        return hashlib.sha256(repr((self.config.checkpoint_id, stats)).encode()).hexdigest()

    def stored_dtype(self, spec: TensorSpec) -> torch.dtype:
        """The dtype a (checked) tensor has on disk."""
        return _TORCH_DTYPE[self._entry(spec).dtype]

    def read(self, reads: Sequence[Read], progress: Progress | None = None) -> None:
        """Read (checked) tensors into their destinations; `progress` gets (loaded, total) bytes of data."""
        total = sum(entry.end - entry.begin for entry in (self._entry(read.spec) for read in reads))
        loaded = 0

        def advance(count: int) -> None:
            nonlocal loaded
            loaded += count
            if progress:
                progress(loaded, total)

        for read in reads:
            self._read_into(read, advance)

    def close(self) -> None:
        """Close the files; `bytes_read` stays."""
        for file in self._files.values():
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_index(self) -> dict[str, str]:
        index = self.path / INDEX_FILE
        if not index.exists():
            if not (self.path / SINGLE_FILE).exists():
                raise CheckpointError(f"{self.path}: expected {INDEX_FILE} or {SINGLE_FILE}, found neither")
            return dict.fromkeys(self._file(SINGLE_FILE).entries, SINGLE_FILE)
        try:
            raw = index.read_bytes()
            self._index_bytes = len(raw)
            parsed = json.loads(raw)
        except OSError as error:
            raise CheckpointError(f"{INDEX_FILE}: cannot read {index}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{INDEX_FILE}: not JSON: {error}") from None
        return _weight_map(parsed)

    def _check_names(self) -> None:
        """All text tensors present, no unknown ones. Vision tensors may be absent: text roles do not load them."""
        expected = {plain_name(spec.name): spec for spec in expected_tensors(self.config)}
        missing = [spec.name for name, spec in expected.items() if name not in self._places and spec.role != "vision"]
        extra = [
            place
            for name, place in self._places.items()
            if name not in expected and not is_ignorable(name, self.config)
        ]
        where = INDEX_FILE if self._index_bytes else SINGLE_FILE
        if missing:
            raise CheckpointError(
                f"tensor {missing[0]}: missing: expected in {where}, not found there"
                f"{_and_more(missing)}{f'; found unexpected {extra[0].name}' if extra else ''}"
            )
        if extra:
            raise CheckpointError(
                f"tensor {extra[0].name}: extra: found in {extra[0].file}, expected no such tensor{_and_more(extra)}"
            )

    def _file(self, name: str) -> SafetensorsFile:
        if name not in self._files:
            self._files[name] = SafetensorsFile(self.path / name)
        return self._files[name]

    def _entry(self, spec: TensorSpec) -> Entry:
        place = self._places[plain_name(spec.name)]
        entry = self._file(place.file).entries.get(place.name)
        if entry is None:
            raise CheckpointError(
                f"tensor {place.name}: expected in {place.file} by the index, not found in its header"
            )
        return entry

    def _check_header(self, spec: TensorSpec) -> None:
        entry, place = self._entry(spec), self._places[plain_name(spec.name)]
        accepted = _accepted_dtypes(spec)
        if entry.dtype not in accepted:
            raise CheckpointError(
                f"tensor {place.name} in {place.file}: dtype: expected {' or '.join(accepted)}, found {entry.dtype}"
            )
        if entry.shape != spec.shape:
            raise CheckpointError(
                f"tensor {place.name} in {place.file}: shape: expected {list(spec.shape)}, found {list(entry.shape)}"
            )

    def _check_weight_shape(self, spec: TensorSpec) -> None:
        place = self._places[plain_name(spec.name)]
        found = torch.empty(2, dtype=self.stored_dtype(spec))
        self._read_into(Read(spec, found), None)
        expected = list(projection_shape(self.config, spec.name.split(".")[-2]))
        if found.tolist() != expected:
            raise CheckpointError(
                f"tensor {place.name} in {place.file}: value: expected {expected} for the packed weight, "
                f"found {found.tolist()}"
            )

    def _read_into(self, read: Read, advance: Callable[[int], None] | None) -> None:
        entry, place = self._entry(read.spec), self._places[plain_name(read.spec.name)]
        destination = read.destination
        dtype = _TORCH_DTYPE[entry.dtype]
        assert destination.shape == entry.shape, (place.name, destination.shape, entry.shape)
        direct = destination.device.type == "cpu" and destination.dtype == dtype and destination.is_contiguous()
        target = destination if direct else torch.empty(entry.shape, dtype=dtype)
        self._file(place.file).read(entry, _bytes_of(target), advance)
        if not direct:
            destination.copy_(target)


def _by_plain_name(weight_map: dict[str, str]) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for name, file in weight_map.items():
        plain = plain_name(name)
        if plain in places:
            raise CheckpointError(f"tensor {name}: the index lists it twice, also as {places[plain].name}")
        places[plain] = Place(name, file)
    return places


def _bytes_of(tensor: Tensor) -> memoryview:
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def _accepted_dtypes(spec: TensorSpec) -> tuple[str, ...]:
    if spec.name.endswith(".weight_shape"):
        return ("I32", "I64")
    return _FLOATS if spec.dtype in _FLOATS else (spec.dtype,)


def _and_more(names: Sequence[object]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _weight_map(parsed: Any) -> dict[str, str]:
    """The index's weight_map, each file a plain name beside the index."""
    weight_map = parsed.get("weight_map") if isinstance(parsed, dict) else None
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{INDEX_FILE}: weight_map: expected an object, found {type(weight_map).__name__}")
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file or "/" in file or "\0" in file or file in (".", ".."):
            raise CheckpointError(f"tensor {name}: {INDEX_FILE} must name a file beside it, found {file!r}")
    return weight_map
