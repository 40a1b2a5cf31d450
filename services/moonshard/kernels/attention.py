"""Fused calls of a decoder layer: attention with its norms and the gate, SwiGLU, the head.

Legend: T rows of a step, D hidden, H heads, N and R no-rope and rope dims of a query, V value dims, L latent rank,
Q rank of queries, C = L + R: what is cached per token, E experts, K experts per token, S slots, M blocks of a sequence.

A row's result depends on its sequence's tokens alone: not on its neighbours in the step, on how the prompt was cut,
on threads or instruction set. Prompts and single tokens take one path: absorbed attention in blocks of 64 keys.
"""

from ctypes import byref
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from moonshard.kernels import structs
from moonshard.kernels.library import FLOATS, TYPES, check, native, row_stride
from moonshard.kernels.linear import Bf16Linear
from moonshard.kernels.pool import Pool

Activations = Literal["float32", "bfloat16"]

_DTYPES: dict[Activations, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class PagedStep:
    """Where a step's rows stand, the same for all layers; int32 and contiguous.

    written_T: slot of each row's own token. sequence_T: its line of blocks_BM. visible_T: keys it sees, itself
    included. blocks_BM: blocks of each sequence in order; position p lies in slot blocks[p // block_size] * block_size
    + p % block_size. cache_LSC: float32 or bfloat16 [layers, S, C]. Rows of one sequence lie in ascending positions,
    side by side.
    """

    written_T: Tensor
    sequence_T: Tensor
    visible_T: Tensor
    blocks_BM: Tensor
    block_size: int
    cache_LSC: Tensor

    def __post_init__(self) -> None:
        for name in ("written_T", "sequence_T", "visible_T", "blocks_BM"):
            tensor = getattr(self, name)
            if tensor.dtype != torch.int32 or not tensor.is_contiguous() or tensor.device.type != "cpu":
                raise ValueError(f"{name}: expected contiguous int32 on the CPU, found {tensor.dtype}")
        if not len(self.written_T) == len(self.sequence_T) == len(self.visible_T):
            lengths = len(self.written_T), len(self.sequence_T), len(self.visible_T)
            raise ValueError(f"rows: expected equal lengths, found {lengths}")
        if self.cache_LSC.dtype not in FLOATS or not self.cache_LSC.is_contiguous() or self.cache_LSC.dim() != 3:
            raise ValueError("cache_LSC: expected contiguous float32 or bfloat16 [layers, slots, width]")

    @property
    def num_rows(self) -> int:
        return len(self.written_T)

    def native(self, rotations_TR: Tensor) -> structs.Step:
        """`rotations_TR`: float32, cosine and sine of each pair side by side."""
        if tuple(rotations_TR.shape[:1]) != (self.num_rows,) or rotations_TR.dtype != torch.float32:
            raise ValueError(f"rotations_TR: expected float32 [{self.num_rows}, R], found {list(rotations_TR.shape)}")
        assert rotations_TR.is_contiguous()
        return structs.Step(
            self.num_rows,
            rotations_TR.data_ptr(),
            self.written_T.data_ptr(),
            self.sequence_T.data_ptr(),
            self.visible_T.data_ptr(),
            self.blocks_BM.data_ptr(),
            self.blocks_BM.stride(0),
            self.block_size,
        )

    def native_cache(self, layer: int, latent: int) -> structs.Cache:
        slots_SC = self.cache_LSC[layer]
        return structs.Cache(slots_SC.data_ptr(), TYPES[slots_SC.dtype], latent, slots_SC.shape[1] - latent)


class Gate:
    """The router of one MoE layer: FP32 logits of FP32 rows, sigmoid, biased top-k, ties to the lower id.

    weight_ED float32: kept as BF16 where that is exact (as published), else as the sum of three BF16 matrices.
    """

    def __init__(
        self,
        pool: Pool,
        weight_ED: Tensor,
        bias_E: Tensor,
        *,
        top_k: int,
        num_groups: int = 1,
        kept_groups: int = 1,
        normalise: bool = True,
        scale: float = 1.0,
    ) -> None:
        parts = _bf16_parts(weight_ED)
        self._weight = Bf16Linear(weight_ED.shape[0], weight_ED.shape[1], num=len(parts))
        for index, part_ED in enumerate(parts):
            self._weight.load(pool, part_ED, index)
        self._bias_E = bias_E.float().contiguous()
        self.top_k = top_k
        self.resident_bytes = self._weight.resident_bytes
        self.native = structs.Gate(
            self._weight.native, self._bias_E.data_ptr(), top_k, num_groups, kept_groups, normalise, scale
        )

    def __call__(self, pool: Pool, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        """(topk_ids_TK int32, topk_weights_TK float32), best first; x float32, rows at any stride. ValueError."""
        row_stride("x", x_TD, (torch.float32,), self._weight.inputs)
        ids_TK, weights_TK = self.empty(len(x_TD))
        x = structs.operand(x_TD)
        outputs = ids_TK.data_ptr(), weights_TK.data_ptr()
        check(native().ms_route(pool.handle, byref(self.native), byref(x), len(x_TD), *outputs))
        return ids_TK, weights_TK

    def empty(self, num_rows: int) -> tuple[Tensor, Tensor]:
        """Room for ids and weights."""
        return torch.empty(num_rows, self.top_k, dtype=torch.int32), torch.empty(num_rows, self.top_k)


@dataclass(frozen=True, slots=True)
class AttentionWeights:
    """One layer as published: BF16 (norms of any float type). `qkv_a` is q_a_proj on kv_a_proj_with_mqa."""

    input_norm: Tensor
    q_a_norm: Tensor
    kv_a_norm: Tensor
    post_norm: Tensor
    qkv_a: Tensor
    q_b: Tensor
    kv_b: Tensor
    o: Tensor


class AttentionBlock:
    """x += attention(norm(x)); h = norm(x); and the gate where there is one: one native call."""

    def __init__(
        self,
        pool: Pool,
        weights: AttentionWeights,
        gate: Gate | None,
        *,
        heads: int,
        nope: int,
        eps: float,
        latent_eps: float,
        scale: float,
    ) -> None:
        w_uk_HNL, w_uv_HVL = _per_head(weights.kv_b, heads, nope)
        self._norms = [
            norm.float().contiguous()
            for norm in (weights.input_norm, weights.q_a_norm, weights.kv_a_norm, weights.post_norm)
        ]
        self._w_uk = Bf16Linear(w_uk_HNL.shape[2], nope, num=heads)
        self._w_uv = Bf16Linear(w_uv_HVL.shape[1], w_uv_HVL.shape[2], num=heads)
        for head in range(heads):
            self._w_uk.load(pool, w_uk_HNL[head].T.contiguous(), head)
            self._w_uv.load(pool, w_uv_HVL[head], head)
        self._qkv_a, self._q_b, self._o = (
            Bf16Linear.pack(pool, weight) for weight in (weights.qkv_a, weights.q_b, weights.o)
        )
        self.gate = gate
        self.hidden, self.latent = len(weights.o), len(weights.kv_a_norm)
        self.rope = len(weights.qkv_a) - len(weights.q_a_norm) - self.latent
        matrices = (self._qkv_a, self._q_b, self._w_uk, self._w_uv, self._o)
        self.resident_bytes = sum(m.resident_bytes for m in matrices) + (gate.resident_bytes if gate else 0)
        self._native = structs.AttentionLayer(
            *(norm.data_ptr() for norm in self._norms),
            *(matrix.native for matrix in matrices),
            gate.native if gate else structs.Gate(),
            eps,
            latent_eps,
            scale,
        )

    def __call__(
        self,
        pool: Pool,
        layer: int,
        x_TD: Tensor,
        step: PagedStep,
        rotations_TR: Tensor,
        activations: Activations = "float32",
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(h_TD in the activations' type, topk_ids_TK, topk_weights_TK); K is 0 without a gate.

        Adds to x_TD (float32) in place and writes the tokens' latents into layer `layer` of the step's cache.
        ValueError for other shapes or types.
        """
        row_stride("x", x_TD, (torch.float32,), self.hidden)
        if len(x_TD) != step.num_rows or step.cache_LSC.shape[2] != self.latent + self.rope:
            found = len(x_TD), step.cache_LSC.shape[2]
            raise ValueError(f"x, cache: expected {step.num_rows} rows, width {self.latent + self.rope}, found {found}")
        dtype = _DTYPES[activations]
        h_TD = torch.empty(len(x_TD), self.hidden, dtype=dtype)
        num_slots = self.gate.top_k if self.gate else 0
        ids_TK = torch.empty(len(x_TD), num_slots, dtype=torch.int32)
        weights_TK = torch.empty(len(x_TD), num_slots)
        cache, where = step.native_cache(layer, self.latent), step.native(rotations_TR)
        x, h = structs.operand(x_TD), structs.operand(h_TD)
        # fmt: off
        check(native().ms_attention_block(
            pool.handle, byref(self._native), byref(cache), byref(where), byref(x), byref(h), TYPES[dtype],
            ids_TK.data_ptr(), weights_TK.data_ptr(),
        ))
        # fmt: on
        return h_TD, ids_TK, weights_TK


class SwiGLU:
    """down(silu(gate) * up); `gate_up` bfloat16 [2 * width, D], gate first; `down` bfloat16 [D, width]."""

    def __init__(self, pool: Pool, gate_up: Tensor, down: Tensor) -> None:
        if gate_up.shape != (2 * down.shape[1], down.shape[0]):
            raise ValueError(f"gate_up: expected {[2 * down.shape[1], down.shape[0]]}, found {list(gate_up.shape)}")
        self._gate_up, self._down = Bf16Linear.pack(pool, gate_up), Bf16Linear.pack(pool, down)
        self.resident_bytes = self._gate_up.resident_bytes + self._down.resident_bytes

    def add_to(self, pool: Pool, x_TD: Tensor, h_TD: Tensor) -> None:
        """x += swiglu(h); x float32, h float32 or bfloat16: what the products take. ValueError."""
        row_stride("x", x_TD, (torch.float32,), self._down.outputs)
        row_stride("h", h_TD, FLOATS, self._gate_up.inputs)
        if len(x_TD) != len(h_TD):
            raise ValueError(f"rows: {len(x_TD)} in x, {len(h_TD)} in h")
        x, h = structs.operand(x_TD), structs.operand(h_TD)
        matrices = byref(self._gate_up.native), byref(self._down.native)
        check(native().ms_swiglu(pool.handle, *matrices, byref(h), len(h_TD), byref(x)))


class Head:
    """Final norm and lm_head: logits of the rows that sample."""

    def __init__(self, pool: Pool, norm_D: Tensor, weight_VD: Tensor, eps: float) -> None:
        self._norm_D = norm_D.float().contiguous()
        self._weight = Bf16Linear.pack(pool, weight_VD)
        self._eps = eps
        self.resident_bytes = self._weight.resident_bytes

    def __call__(self, pool: Pool, x_ND: Tensor, activations: Activations = "float32") -> Tensor:
        """float32 [N, vocabulary] of float32 rows at any stride. ValueError."""
        row_stride("x", x_ND, (torch.float32,), self._weight.inputs)
        logits_NV = torch.empty(len(x_ND), self._weight.outputs)
        x, y, products = structs.operand(x_ND), structs.operand(logits_NV), TYPES[_DTYPES[activations]]
        # fmt: off
        check(native().ms_norm_multiply(
            pool.handle, self._norm_D.data_ptr(), self._eps, byref(self._weight.native), byref(x), len(x_ND), products,
            byref(y),
        ))
        # fmt: on
        return logits_NV


def attend(pool: Pool, layer: int, q_THC: Tensor, step: PagedStep, latent: int, scale: float) -> Tensor:
    """Attention alone: queries float32 [T, H, C] in latent space to o_latent [T, H, L]. Reads the cache only."""
    if q_THC.dtype != torch.float32 or len(q_THC) != step.num_rows or q_THC.shape[2] != step.cache_LSC.shape[2]:
        expected = [step.num_rows, "H", step.cache_LSC.shape[2]]
        raise ValueError(f"q: expected float32 {expected}, found {q_THC.dtype} {list(q_THC.shape)}")
    q_THC = q_THC.clone(memory_format=torch.contiguous_format)
    cache, where = step.native_cache(layer, latent), step.native(torch.empty(step.num_rows, 0))
    check(native().ms_attend(pool.handle, byref(cache), byref(where), q_THC.data_ptr(), q_THC.shape[1], scale))
    return q_THC[..., :latent]


def _per_head(kv_b: Tensor, heads: int, nope: int) -> tuple[Tensor, Tensor]:
    """W_UK [H, N, L] and W_UV [H, V, L] of kv_b_proj [H * (N + V), L]."""
    w_HOL = torch.unflatten(kv_b, 0, (heads, -1))
    return w_HOL[:, :nope], w_HOL[:, nope:]


def _bf16_parts(weight: Tensor) -> list[Tensor]:
    """BF16 matrices whose sum is the FP32 weight: one where that is exact, else three of eight bits each."""
    rest = weight.float()
    parts = [rest.bfloat16()]
    if torch.equal(parts[0].float(), rest):
        return parts
    for _ in range(2):
        rest = rest - parts[-1].float()
        parts.append(rest.bfloat16())
    return parts
