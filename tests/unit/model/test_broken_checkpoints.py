"""A table of broken checkpoints: each error names the tensor or file, what was expected and what was found."""

import contextlib
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moonshard.errors import CheckpointError
from moonshard.model.checkpoint import Checkpoint
from moonshard.model.config import ModelConfig
from moonshard.model.experts import load_expert_stacks
from moonshard.model.safetensors_file import SafetensorsFile
from moonshard.model.weights import load_weights
from tests.unit.model.tiny_checkpoint import kimi_text, wrapped, write_checkpoint

INDEX = "model.safetensors.index.json"
FIRST, LAST = "model-00001-of-000002.safetensors", "model-00002-of-000002.safetensors"
NORM = "language_model.model.norm.weight"  # in FIRST
EXPERT = "language_model.model.layers.2.mlp.experts.15.up_proj"  # in LAST
PACKED, SCALE, SHAPE = (f"{EXPERT}.weight_{part}" for part in ("packed", "scale", "shape"))
Break = Callable[[Path], object]


def file_of(path: Path, name: str) -> Path:
    return path / str(json.loads((path / INDEX).read_text())["weight_map"][name])


def index(change: Callable[[dict[str, Any]], object]) -> Break:
    """Edit the index's weight_map."""

    def apply(path: Path) -> None:
        parsed = json.loads((path / INDEX).read_text())
        change(parsed["weight_map"])
        (path / INDEX).write_text(json.dumps(parsed))

    return apply


def listed(name: str, file: object) -> Break:
    return index(lambda weight_map: weight_map.update({name: file}))


def unlisted(name: str) -> Break:
    return index(lambda weight_map: weight_map.pop(name))


def whole(content: bytes, file: str = INDEX) -> Break:
    return lambda path: (path / file).write_bytes(content)


def cut(change: Callable[[bytes], bytes]) -> Break:
    return lambda path: (path / LAST).write_bytes(change((path / LAST).read_bytes()))


def tensor(name: str, change: Callable[[Tensor], Tensor]) -> Break:
    """Replace one tensor in its file."""

    def apply(path: Path) -> None:
        file = file_of(path, name)
        content = load_file(file)
        save_file({**content, name: change(content[name]).contiguous()}, file)

    return apply


def dropped(name: str) -> Break:
    """Take a tensor out of its file but not out of the index."""

    def apply(path: Path) -> None:
        file = file_of(path, name)
        save_file({key: value for key, value in load_file(file).items() if key != name}, file)

    return apply


def header(name: str, entry: Callable[[dict[str, Any]], object]) -> Break:
    """Replace a tensor's entry in the JSON header of its file, leaving the data as they are."""

    def apply(path: Path) -> None:
        file = file_of(path, name)
        raw = file.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        parsed = json.loads(raw[8 : 8 + length])
        text = json.dumps({**parsed, name: entry(parsed)}).encode()
        file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])

    return apply


def no_weights(path: Path) -> None:
    for file in path.glob("model*"):
        file.unlink()


def directory(path: Path) -> None:
    (path / LAST).unlink()
    (path / LAST).mkdir()


FOREIGN = "language_model.model.layers.9.mlp.up_proj.weight"
SURPLUS = PACKED.replace(".15.", ".16.")
OTHER_SCALE = SCALE.replace("up_proj", "gate_proj")
TABLE: dict[str, tuple[Break, str]] = {
    "no weights": (no_weights, f"expected {INDEX} or model.safetensors, found neither"),
    "index not JSON": (whole(b"{"), f"{INDEX}: not JSON"),
    "index a list": (whole(b"[1]"), f"{INDEX}: weight_map: expected an object, found NoneType"),
    "index without weight_map": (whole(b"{}"), f"{INDEX}: weight_map: expected an object, found NoneType"),
    "file name a number": (listed(NORM, 7), f"tensor {NORM}: {INDEX} must name a file beside it, found 7"),
    "file elsewhere": (listed(NORM, "../x"), f"tensor {NORM}: {INDEX} must name a file beside it, found '../x'"),
    "tensor missing": (unlisted(NORM), f"tensor {NORM}: missing: expected in {INDEX}, not found there"),
    "scale missing": (unlisted(SCALE), f"tensor {SCALE}: missing: expected in {INDEX}, not found there"),
    "tensor of no layer": (
        listed(FOREIGN, FIRST),
        f"tensor {FOREIGN}: extra: found in {FIRST}, expected no such tensor",
    ),
    "one expert too many": (
        listed(SURPLUS, LAST),
        f"tensor {SURPLUS}: extra: found in {LAST}, expected no such tensor",
    ),
    "tensor twice": (
        listed("model.norm.weight", FIRST),
        f"tensor model.norm.weight: the index lists it twice, also as {NORM}",
    ),
    "file absent": (lambda path: (path / LAST).unlink(), f"{LAST}: cannot open *: No such file"),
    "file a directory": (directory, f"{LAST}: cannot read *: Is a directory"),
    "not in its file": (dropped(PACKED), f"tensor {PACKED}: expected in {LAST} by the index, not found in its header"),
    "wrong file": (listed(NORM, LAST), f"tensor {NORM}: expected in {LAST} by the index, not found in its header"),
    "misshapen": (
        tensor(NORM, lambda t: t[:-1]),
        f"tensor {NORM} in {FIRST}: shape: expected [128], found [127]",
    ),
    "transposed": (
        tensor(SCALE, lambda t: t.T),
        f"tensor {SCALE} in {LAST}: shape: expected [64, 4], found [4, 64]",
    ),
    "integers for floats": (
        tensor(NORM, lambda t: t.long()),
        f"tensor {NORM} in {FIRST}: dtype: expected BF16 or F16 or F32, found I64",
    ),
    "FP8 for BF16": (
        tensor(NORM, lambda t: t.to(torch.float8_e4m3fn)),
        f"tensor {NORM} in {FIRST}: dtype: expected BF16 or F16 or F32, found F8_E4M3",
    ),
    "words of 16 bits": (
        tensor(PACKED, lambda t: t.to(torch.int16)),
        f"tensor {PACKED} in {LAST}: dtype: expected I32, found I16",
    ),
    "weight_shape disagrees": (
        tensor(SHAPE, lambda t: t.flip(0)),
        f"tensor {SHAPE} in {LAST}: value: expected [64, 128] for the packed weight, found [128, 64]",
    ),
    "data truncated": (cut(lambda raw: raw[:-100]), f"{LAST}: truncated: tensor * ends at byte *, the file at *"),
    "header truncated": (cut(lambda raw: raw[:200]), f"{LAST}: truncated: the header ends at byte *, the file at 200"),
    "file empty": (whole(b"", LAST), f"{LAST}: truncated: expected at least 8 bytes, found 0"),
    "another format": (whole(b"PK\x03\x04" * 99, LAST), f"{LAST}: not a safetensors file: header length * exceeds"),
    "header garbage": (cut(lambda raw: raw[:8] + b"\xff" + raw[9:]), f"{LAST}: header is not JSON"),
    "header a list": (whole(b"\2\0\0\0\0\0\0\0[]", LAST), f"{LAST}: header must be a JSON object, found list"),
    "entry without offsets": (
        header(NORM, lambda h: {"dtype": "BF16", "shape": [128]}),
        f"{FIRST}: tensor {NORM}: header entry must have dtype, shape, data_offsets; found *BF16",
    ),
    "negative shape": (
        header(NORM, lambda h: {**h[NORM], "shape": [-128]}),
        f"{FIRST}: tensor {NORM}: header entry holds wrong values",
    ),
    "offsets beyond the file": (
        header(NORM, lambda h: {**h[NORM], "data_offsets": [2**40, 2**40 + 256]}),
        f"{FIRST}: truncated: tensor {NORM} ends at byte *, the file at *",
    ),
    "offsets against the shape": (
        header(NORM, lambda h: {**h[NORM], "data_offsets": [0, 255]}),
        f"{FIRST}: tensor {NORM}: BF16 [128] takes 256 bytes, data_offsets span 255",
    ),
    "offsets overlap": (
        header(SCALE, lambda h: h[OTHER_SCALE]),
        f"{LAST}: tensor * data_offsets overlap tensor *weight_scale: begins at byte *, expected at least *",
    ),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("sound"), wrapped(kimi_text()))


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / "copy")


def load_everything(path: Path) -> None:
    with Checkpoint(path, ModelConfig.from_dir(path)) as checkpoint:
        load_weights(checkpoint)
        load_expert_stacks(checkpoint, range(8, 16))


@pytest.mark.parametrize("kind", TABLE)
def test_a_broken_checkpoint_says_what_is_wrong(copy: Path, kind: str) -> None:
    break_, message = TABLE[kind]
    load_everything(copy)
    break_(copy)
    with pytest.raises(CheckpointError, match=re.escape(message).replace(r"\*", ".*")):
        load_everything(copy)


def test_nothing_of_a_broken_role_is_read_before_it_is_checked(copy: Path) -> None:
    tensor(NORM, lambda t: t[:-1])(copy)
    seen: list[int] = []
    with Checkpoint(copy, ModelConfig.from_dir(copy)) as checkpoint:
        with pytest.raises(CheckpointError, match="shape"):
            load_weights(checkpoint, progress=lambda loaded, _: seen.append(loaded))
        load_expert_stacks(checkpoint, range(16))  # the other role does not touch that tensor
    assert seen == []


def test_files_are_closed_after_an_error(copy: Path) -> None:
    tensor(NORM, lambda t: t[:-1])(copy)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(CheckpointError):
        load_everything(copy)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_no_flipped_byte_of_a_header_raises_anything_but_a_checkpoint_error(sound: Path, tmp_path: Path) -> None:
    """Every byte of the length and a sample of the header's, each set to several values."""
    raw = (sound / LAST).read_bytes()
    file, random = tmp_path / LAST, torch.Generator().manual_seed(0)
    places = [*range(8), *torch.randint(8, 3000, (60,), generator=random).tolist()]
    for place in places:
        for byte in b'\x00\xff"9-[':
            file.write_bytes(raw[:place] + bytes([byte]) + raw[place + 1 :])
            with contextlib.suppress(CheckpointError):
                SafetensorsFile(file).close()
