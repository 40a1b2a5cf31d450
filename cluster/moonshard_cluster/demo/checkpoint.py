"""Writes a demo checkpoint in the published format (specification sections 1, 3 and 4).

One layer per file, then a file for embeddings, final norm and head. Names, shapes and types come from the loader's own
inventory, so writer and loader cannot disagree.
"""

import json
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moonshard.errors import CheckpointError, ConfigError
from moonshard.model.inventory import TensorSpec, expected_tensors
from moonshard_cluster.demo.safetensors_writer import TensorFile
from moonshard_cluster.demo.spec import DemoSpec
from moonshard_cluster.demo.vocabulary import write_vocabulary
from moonshard_cluster.demo.weights import Weights

Progress = Callable[[int, int], None]

PROGRESS_BYTES = 4 << 20


def write_demo(path: Path, spec: DemoSpec, progress: Progress | None = None) -> None:
    """Write a complete checkpoint directory; it appears at `path` in one step, or not at all.

    `progress` is told (bytes written, bytes in total) every few megabytes and at the end. Raises ConfigError when
    `path` is in use and CheckpointError when it cannot be written.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError("path", f"{path} exists and is not an empty directory")
    with _appearing_at(path) as folder:
        files = _files(spec)
        _require_space(folder, sum(tensor.num_bytes for tensors in files.values() for tensor in tensors))
        _write_json(folder / "config.json", spec.config_json())
        _write_json(folder / "generation_config.json", spec.generation_json())
        write_vocabulary(folder, spec.vocab_size)
        _write_weights(folder, spec, files, progress or (lambda written, total: None))


@contextmanager
def _appearing_at(path: Path) -> Iterator[Path]:
    """A folder beside `path` that takes its place at the end and is removed after a failure."""
    folder = path.parent / f".{path.name}-{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True)
        yield folder
        folder.rename(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _require_space(folder: Path, num_bytes: int) -> None:
    free = _free_bytes(folder)
    if free < num_bytes:
        raise CheckpointError(f"{folder.parent}: the checkpoint takes {num_bytes} bytes, {free} are free")


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _files(spec: DemoSpec) -> dict[str, list[TensorSpec]]:
    """Tensors by file name: model-00001-of-000006.safetensors holds layer 0, the last one what is outside layers."""
    groups: list[list[TensorSpec]] = [[] for _ in range(spec.num_hidden_layers + 1)]
    for tensor in expected_tensors(spec.config):
        groups[-1 if tensor.layer is None else tensor.layer].append(tensor)
    return {f"model-{number:05}-of-{len(groups):06}.safetensors": group for number, group in enumerate(groups, start=1)}


def _write_weights(folder: Path, spec: DemoSpec, files: dict[str, list[TensorSpec]], progress: Progress) -> None:
    total = sum(tensor.num_bytes for tensors in files.values() for tensor in tensors)
    written = told = 0
    for stream, (name, tensors) in enumerate(files.items()):
        weights = Weights(spec, stream)
        with TensorFile(folder / name, tensors) as file:
            for tensor in tensors:
                file.write(tensor, weights.tensor(tensor))
                written += tensor.num_bytes
                if written - told >= PROGRESS_BYTES or written == total:
                    told = written
                    progress(written, total)
    weight_map = {tensor.name: name for name, tensors in files.items() for tensor in tensors}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
