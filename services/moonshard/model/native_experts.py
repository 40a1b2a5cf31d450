"""Routed INT4 experts of one layer on the native CPU kernels: the same role as `experts.ExpertStack`, faster.

Legend: R rows, K experts per token, D hidden size.

Rows' results depend on the row alone: not on the batch, nor on the number of threads (moonshard.kernels).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from moonshard.kernels import Int4Experts, Pool, Precision
from moonshard.kernels.experts import panels_bytes
from moonshard.model.checkpoint import Checkpoint, Progress, Read
from moonshard.model.config import ModelConfig
from moonshard.model.inventory import TensorSpec, expert_tensors, projection_tensors
from moonshard.model.repacked_cache import cached_path, new_cached, open_cached

_PROJECTIONS = {"gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


@dataclass(frozen=True, slots=True)
class NativeExpertStack:
    """precision: of the rows inside an expert; "exact" is FP32, "int8" has a scale for each 32 inputs."""

    kernels: Int4Experts
    pool: Pool
    precision: Precision

    @property
    def resident_bytes(self) -> int:
        return self.kernels.resident_bytes

    def memory_of(self, slot: int) -> tuple[Tensor, ...]:
        """What one expert's weights take, by its place in the stack."""
        return (self.kernels.memory_of(slot),)

    def forward(self, x_RD: Tensor, topk_ids_RK: Tensor, topk_weights_RK: Tensor) -> Tensor:
        """Weighted sum of this stack's experts per row, FP32 [R, D], in ascending order of experts."""
        return self.kernels.forward(self.pool, x_RD, topk_ids_RK, topk_weights_RK, precision=self.precision)

    def forward_apart(self, x_RD: Tensor, topk_ids_RK: Tensor, topk_weights_RK: Tensor, slots_E: Tensor) -> Tensor:
        """As ExpertStack.forward_apart."""
        ids_RK, weights_RK = topk_ids_RK.contiguous(), topk_weights_RK.contiguous()
        return self.kernels.forward(self.pool, x_RD, ids_RK, weights_RK, None, self.precision, slots_E)


def can_load(checkpoint: Checkpoint) -> bool:
    """Whether the kernels read this checkpoint's experts: packed INT4 with BF16 scales, as published."""
    config = checkpoint.config
    if config.quantization is None or not config.moe_layers:
        return False
    specs = expert_tensors(config, config.moe_layers[0], 0)
    return all(checkpoint.stored_dtype(s) == torch.bfloat16 for s in specs if s.name.endswith("weight_scale"))


def load_native_stacks(
    checkpoint: Checkpoint,
    experts: range,
    pool: Pool,
    precision: Precision,
    progress: Progress | None = None,
    cache: Path | None = None,
    num_slots: int | None = None,
) -> dict[int, NativeExpertStack]:
    """Stacks of `experts` for every MoE layer, by layer index, repacked one expert at a time.

    num_slots: experts that each layer has memory for, `experts` in the first of them; as many when None.
    Reads these experts' byte ranges and nothing else. cache: a directory that keeps what was repacked; from then on it
    is mapped instead of read anew. Raises CheckpointError before any weight is read when a tensor is not as expected,
    ConfigError when the cache cannot be used.
    """
    config = checkpoint.config
    specs = {
        (layer, expert): list(expert_tensors(config, layer, expert))
        for layer in config.moe_layers
        for expert in experts
    }
    slots = range(experts.start, experts.start + (num_slots or len(experts)))
    checkpoint.check(spec for group in specs.values() for spec in group)
    load = partial(_repack_all, checkpoint, specs, pool, progress or _untold)
    if cache is None:
        stacks = _stacks(config, slots, pool, precision, None)
        load(stacks)
        return stacks
    fingerprint = checkpoint.fingerprint(spec for group in specs.values() for spec in group)
    path = cached_path(cache, fingerprint, experts, len(slots))
    num_bytes = len(config.moe_layers) * _layer_bytes(config, slots)
    if (panels := open_cached(path, num_bytes)) is None:
        with new_cached(path, num_bytes) as fresh:
            stacks = _stacks(config, slots, pool, precision, fresh)
            load(stacks)
        # What is loaded into slots later is this shard's alone: it must not get into the file.
        if len(slots) == len(experts) or (panels := open_cached(path, num_bytes)) is None:
            return stacks
    stacks = _stacks(config, slots, pool, precision, panels)
    _touch_all(stacks, pool, progress or _untold)
    return stacks


class NativeSlots:
    """Loads single experts into slots of running stacks. For one thread, which is not the one that computes."""

    def __init__(self, checkpoint: Checkpoint, stacks: Mapping[int, NativeExpertStack]) -> None:
        self._checkpoint, self._stacks = checkpoint, stacks
        # A pool of its own: the shard's computes meanwhile.
        self._pool, self._staging = Pool(1), _Staging(checkpoint.config)

    def load(self, layer: int, expert: int, slot: int) -> None:
        """Raises CheckpointError."""
        specs = list(expert_tensors(self._checkpoint.config, layer, expert))
        self._checkpoint.check(specs)
        kernels = self._stacks[layer].kernels
        self._staging.move(self._checkpoint, specs, kernels, self._pool, kernels.first_expert + slot)


def _untold(loaded: int, total: int) -> None:
    """Progress that nobody watches."""


def _layer_bytes(config: ModelConfig, experts: range) -> int:
    return panels_bytes(len(experts), config.hidden_size, config.moe_intermediate_size)


def _stacks(
    config: ModelConfig, experts: range, pool: Pool, precision: Precision, panels: Tensor | None
) -> dict[int, NativeExpertStack]:
    """Stacks still without weights; panels: the memory of all layers, one after the other."""
    size = _layer_bytes(config, experts)
    shape = config.hidden_size, config.moe_intermediate_size
    stacks = {}
    for index, layer in enumerate(config.moe_layers):
        part = None if panels is None else panels[index * size : (index + 1) * size]
        kernels = Int4Experts(experts.start, len(experts), *shape, part)
        stacks[layer] = NativeExpertStack(kernels, pool, precision)
    return stacks


def _repack_all(
    checkpoint: Checkpoint,
    specs: Mapping[tuple[int, int], list[TensorSpec]],
    pool: Pool,
    progress: Progress,
    stacks: Mapping[int, NativeExpertStack],
) -> None:
    total = sum(_data_bytes(group) for group in specs.values())
    staging, loaded = _Staging(checkpoint.config), 0
    for (layer, expert), group in specs.items():
        staging.move(checkpoint, group, stacks[layer].kernels, pool, expert)
        loaded += _data_bytes(group)
        progress(loaded, total)


def _touch_all(stacks: Mapping[int, NativeExpertStack], pool: Pool, progress: Progress) -> None:
    total, loaded = sum(stack.resident_bytes for stack in stacks.values()), 0
    for stack in stacks.values():
        stack.kernels.touch(pool)
        loaded += stack.resident_bytes
        progress(loaded, total)


def _data_bytes(specs: list[TensorSpec]) -> int:
    return sum(spec.num_bytes for spec in specs if not spec.name.endswith("weight_shape"))


class _Staging:
    """Published tensors of one expert on their way into the kernels' layout; the same memory for all experts."""

    def __init__(self, config: ModelConfig) -> None:
        dtypes = {"I32": torch.int32, "BF16": torch.bfloat16}
        self._tensors = {
            (projection, suffix): torch.empty(shape, dtype=dtypes[dtype])
            for projection in _PROJECTIONS
            for suffix, shape, dtype in projection_tensors(config, projection)
            if suffix != "weight_shape"
        }

    def move(self, checkpoint: Checkpoint, specs: list[TensorSpec], to: Int4Experts, pool: Pool, expert: int) -> None:
        parts = ((spec, tuple(spec.name.split(".")[-2:])) for spec in specs)
        checkpoint.read([Read(spec, self._tensors[part]) for spec, part in parts if part in self._tensors])
        for projection, name in _PROJECTIONS.items():
            packed, scale = self._tensors[projection, "weight_packed"], self._tensors[projection, "weight_scale"]
            to.load(pool, expert, name, packed, scale)
