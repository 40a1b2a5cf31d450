"""Routed experts of one layer: a contiguous block of logical experts, INT4 or plain.

Legend: E experts here, R rows, N rows of one expert, K experts per token, D hidden size, I expert width.

The reference arithmetic: weights dequantised in FP32 (specification 4), rounded once to the rows' dtype; weighted sums
in FP32, in ascending expert order.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from moonshard.errors import ConfigError
from moonshard.model import int4
from moonshard.model.checkpoint import Checkpoint, Progress, Read
from moonshard.model.config import ModelConfig
from moonshard.model.inventory import TensorSpec, expert_tensors
from moonshard.model.layers import silu_and_mul


class Projection(Protocol):
    """One matrix of each expert of a layer."""

    def linear(self, x_NI: Tensor, expert: int) -> Tensor:
        """Rows times the `expert`-th expert's weights, [N, out] in the dtype of x."""

    @property
    def tensors(self) -> tuple[Tensor, ...]: ...


@dataclass(frozen=True, slots=True)
class Int4Projection:
    """packed int32 [E, out, in / 8], scale [E, out, in / 32]."""

    packed: Tensor
    scale: Tensor

    def linear(self, x_NI: Tensor, expert: int) -> Tensor:
        return int4.linear(x_NI, self.packed[expert], self.scale[expert])

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.packed, self.scale


@dataclass(frozen=True, slots=True)
class PlainProjection:
    """values [E, out, in] in the compute dtype."""

    values: Tensor

    def linear(self, x_NI: Tensor, expert: int) -> Tensor:
        return functional.linear(x_NI, self.values[expert].to(x_NI.dtype))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.values,)


def run_expert(x_ND: Tensor, gate_up: Projection, down: Projection, expert: int) -> Tensor:
    """One expert on its rows: down(silu(gate x) * up x), [N, D]. The seam for native kernels."""
    return down.linear(silu_and_mul(gate_up.linear(x_ND, expert)), expert)


@dataclass(frozen=True, slots=True)
class ExpertStack:
    """The experts `experts` (logical ids) of one layer. gate_up is [2 I, D] with gate first, down is [D, I]."""

    experts: range
    gate_up: Projection
    down: Projection

    @property
    def resident_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.gate_up.tensors, *self.down.tensors))

    def memory_of(self, slot: int) -> tuple[Tensor, ...]:
        """What one expert's weights take, by its place in the stack."""
        return tuple(tensor[slot] for tensor in (*self.gate_up.tensors, *self.down.tensors))

    def forward(self, x_RD: Tensor, topk_ids_RK: Tensor, topk_weights_RK: Tensor) -> Tensor:
        """Weighted sum of this stack's experts per row, FP32 [R, D]; zero for rows without one here.

        Ids are logical; -1 and ids of experts elsewhere are passed over.
        """
        y_RD = torch.zeros(x_RD.shape, dtype=torch.float32, device=x_RD.device)
        for expert, rows_N, weights_N in self._assignments(topk_ids_RK, topk_weights_RK):
            out_ND = run_expert(x_RD[rows_N], self.gate_up, self.down, expert)
            y_RD.index_add_(0, rows_N, out_ND.float() * weights_N.unsqueeze(1))
        return y_RD

    def forward_apart(self, x_RD: Tensor, topk_ids_RK: Tensor, topk_weights_RK: Tensor, slots_E: Tensor) -> Tensor:
        """Each (row, expert)'s weighted output, FP32 [P, D]: one for each id that is not -1, in their order.

        slots_E: int32, where each logical expert lies in this stack, -1: not here, which makes its output NaN.
        """
        ids = topk_ids_RK.flatten().long()
        asked = (ids >= 0).nonzero().squeeze(1)
        slots, rows = slots_E.to(ids.device)[ids[asked]], asked // max(topk_ids_RK.shape[1], 1)
        weights = topk_weights_RK.flatten()[asked].float()
        y_PD = torch.full((len(asked), x_RD.shape[1]), torch.nan, dtype=torch.float32, device=x_RD.device)
        for slot in sorted(set(slots[slots >= 0].tolist())):
            pairs_N = (slots == slot).nonzero().squeeze(1)
            out_ND = run_expert(x_RD[rows[pairs_N]], self.gate_up, self.down, slot)
            y_PD[pairs_N] = out_ND.float() * weights[pairs_N].unsqueeze(1)
        return y_PD

    def _assignments(self, ids_RK: Tensor, weights_RK: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(expert here, its rows ascending, their weights), ascending by expert; experts without rows left out."""
        ids = ids_RK.flatten().long() - self.experts.start
        taken = ((ids >= 0) & (ids < len(self.experts))).nonzero().squeeze(1)
        experts, order = ids[taken].sort(stable=True)
        taken = taken[order]
        rows, weights = taken // max(ids_RK.shape[1], 1), weights_RK.flatten()[taken].float()
        counts = torch.bincount(experts, minlength=len(self.experts)).tolist()
        start = 0
        for expert, count in enumerate(counts):
            if count:
                yield expert, rows[start : start + count], weights[start : start + count]
                start += count


def load_expert_stacks(
    checkpoint: Checkpoint,
    experts: range,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    num_slots: int | None = None,
) -> dict[int, ExpertStack]:
    """Stacks of `experts` for every MoE layer, by layer index. Reads these experts' byte ranges and nothing else.

    num_slots: experts that each layer has memory for, `experts` in the first of them; as many when None.
    `dtype` is that of plain experts; packed ones stay as they are stored. Raises CheckpointError before any
    weight is read when a tensor is not as expected.
    """
    config = checkpoint.config
    if not (experts.step == 1 and 0 <= experts.start < experts.stop <= config.n_routed_experts):
        raise ConfigError("experts", f"must be a block of 0..{config.n_routed_experts - 1}, got {experts}")
    specs = {
        (layer, expert): list(expert_tensors(config, layer, expert))
        for layer in config.moe_layers
        for expert in experts
    }
    every = [spec for group in specs.values() for spec in group]
    checkpoint.check(every)
    scale_dtype = _scale_dtype(checkpoint, every)
    stacks = {
        layer: _allocate(config, experts, num_slots or len(experts), dtype, scale_dtype, device)
        for layer in config.moe_layers
    }
    reads = [
        Read(spec, destination)
        for (layer, expert), group in specs.items()
        for spec, destination in _destinations(group, stacks[layer], expert - experts.start)
    ]
    checkpoint.read(reads, progress)
    return stacks


def _scale_dtype(checkpoint: Checkpoint, specs: list[TensorSpec]) -> torch.dtype:
    """BF16 as published; FP32 when any scale is stored wider, so that none is rounded."""
    stored = {checkpoint.stored_dtype(spec) for spec in specs if spec.name.endswith("weight_scale")}
    return torch.bfloat16 if stored <= {torch.bfloat16} else torch.float32


def _allocate(
    config: ModelConfig,
    experts: range,
    num: int,
    dtype: torch.dtype,
    scale_dtype: torch.dtype,
    device: torch.device | str,
) -> ExpertStack:
    width, hidden = config.moe_intermediate_size, config.hidden_size

    def projection(rows: int, columns: int) -> Projection:
        if config.quantization is None:
            return PlainProjection(torch.empty(num, rows, columns, dtype=dtype, device=device))
        return Int4Projection(
            torch.empty(num, rows, columns // 8, dtype=torch.int32, device=device),
            torch.empty(num, rows, columns // config.quantization.group_size, dtype=scale_dtype, device=device),
        )

    return ExpertStack(experts, projection(2 * width, hidden), projection(hidden, width))


def _destinations(specs: list[TensorSpec], stack: ExpertStack, expert: int) -> Iterator[tuple[TensorSpec, Tensor]]:
    """Where each stored tensor of one expert goes in its stack; weight_shape goes nowhere."""
    half: dict[str, Callable[[Tensor], Tensor]] = {
        "gate_proj": lambda t: t[: t.shape[0] // 2],
        "up_proj": lambda t: t[t.shape[0] // 2 :],
        "down_proj": lambda t: t,
    }
    for spec in specs:
        projection, suffix = spec.name.split(".")[-2:]
        if suffix == "weight_shape":
            continue
        tensors = (stack.down if projection == "down_proj" else stack.gate_up).tensors
        yield spec, half[projection](tensors[suffix == "weight_scale"][expert])


class StackSlots:
    """Loads single experts into slots of running stacks. For one thread, which is not the one that computes."""

    def __init__(self, checkpoint: Checkpoint, stacks: Mapping[int, ExpertStack]) -> None:
        self._checkpoint, self._stacks = checkpoint, stacks

    def load(self, layer: int, expert: int, slot: int) -> None:
        """Raises CheckpointError."""
        specs = list(expert_tensors(self._checkpoint.config, layer, expert))
        self._checkpoint.check(specs)
        self._checkpoint.read([Read(*it) for it in _destinations(specs, self._stacks[layer], slot)])
