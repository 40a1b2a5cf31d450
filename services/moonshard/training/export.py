"""Writes trained weights as a checkpoint in the published format: INT4 experts, BF16 rest."""

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from moonshard.errors import ConfigError
from moonshard.model import int4
from moonshard.model.checkpoint import SINGLE_FILE
from moonshard.model.config import ModelConfig
from moonshard.model.inventory import TensorSpec, expected_tensors, plain_name
from moonshard.model.weights import destinations
from moonshard.training.parameters import ExpertWeights, Parameters
from moonshard.training.recipe import Recipe
from moonshard_cluster.demo.safetensors_writer import TensorFile

_DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "I32": torch.int32}


def export(folder: Path, recipe: Recipe, parameters: Parameters, vocabulary: Path, int4_experts: bool = True) -> None:
    """A checkpoint directory at `folder`, which must not exist. Without `int4_experts` experts are BF16."""
    if folder.exists():
        raise ConfigError("folder", f"{folder} exists")
    folder.mkdir(parents=True)
    config_json = recipe.spec.config_json()
    if not int4_experts:
        del config_json["text_config"]["quantization_config"]
    config = ModelConfig.from_json(config_json, recipe.spec.generation_json())
    _write_json(folder / "config.json", config_json)
    _write_json(folder / "generation_config.json", recipe.spec.generation_json())
    for path in vocabulary.iterdir():
        shutil.copyfile(path, folder / path.name)
    specs = list(expected_tensors(config))
    tensors = _tensors(config, parameters)
    with TensorFile(folder / SINGLE_FILE, specs) as file:
        for spec in specs:
            file.write(spec, _bytes(spec, tensors(spec)))


def _tensors(config: ModelConfig, parameters: Parameters) -> Callable[[TensorSpec], Tensor]:
    attention = dict(destinations(config, parameters.decoder))
    stored = {index: _stored(config, experts) for index, experts in parameters.experts.items()}

    def find(spec: TensorSpec) -> Tensor:
        if spec.expert is None or spec.layer is None:
            return attention[plain_name(spec.name)].detach()
        projection, suffix = spec.name.split(".")[-2:]
        if suffix == "weight_shape":
            return torch.tensor(_shape(config, projection), dtype=torch.int32)
        return stored[spec.layer][projection, suffix][spec.expert]

    return find


def _stored(config: ModelConfig, experts: ExpertWeights) -> dict[tuple[str, str], Tensor]:
    """All experts' tensors of a layer by (projection, suffix), quantised if the checkpoint is."""
    width = config.moe_intermediate_size
    gate_up, down = experts.gate_up.detach(), experts.down.detach()
    plain = {"gate_proj": gate_up[:, :width], "up_proj": gate_up[:, width:], "down_proj": down}
    if config.quantization is None:
        return {(projection, "weight"): weights for projection, weights in plain.items()}
    found: dict[tuple[str, str], Tensor] = {}
    for projection, weights in plain.items():
        packed, scale = int4.quantise(weights)
        found |= {(projection, "weight_packed"): packed, (projection, "weight_scale"): scale}
    return found


def _shape(config: ModelConfig, projection: str) -> tuple[int, int]:
    width, hidden = config.moe_intermediate_size, config.hidden_size
    return (hidden, width) if projection == "down_proj" else (width, hidden)


def _bytes(spec: TensorSpec, tensor: Tensor) -> Iterable[bytes | memoryview]:
    values = tensor.to(_DTYPES[spec.dtype]).contiguous()
    assert tuple(values.shape) == spec.shape, f"{spec.name}: {tuple(values.shape)}, expected {spec.shape}"
    yield values.view(torch.uint8).numpy().data.cast("B")


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
