"""Attention over the paged cache with torch's operators, for `model.decoder.Decoder`: any device, no compiler needed.

T tokens of the step: B decodes first, then prefill chunks. H heads, N and R the no-rope and rope parts of a query,
C the latent's width, V the value's; S slots of the longest decoding sequence.
"""

import torch
from torch import Tensor

from moonshard.attention.kv_cache import LatentCache
from moonshard.attention.plan import Chunk, StepPlan
from moonshard.model.decoder import Attend
from moonshard.model.mla import MLA, merge

# Cached context is expanded to keys and values in pieces of this many tokens, to bound memory on long prompts.
CONTEXT_SEGMENT = 2048


def make_attend(cache: LatentCache, device: torch.device, plan: StepPlan) -> Attend:
    """What `Decoder.forward` needs to run the plan."""
    step = _StepSlots(cache, device, plan)

    def attend(layer: int, mla: MLA, q_nope_THN: Tensor, q_pe_THR: Tensor, latent_TC: Tensor) -> Tensor:
        cache.write(layer, step.written_T, latent_TC)
        outputs = []
        if num_decodes := len(plan.decodes):
            latent_BSC = cache.read(layer, step.decode_BS)
            decodes = slice(0, num_decodes)
            outputs.append(mla.absorbed(q_nope_THN[decodes], q_pe_THR[decodes], latent_BSC, step.lengths_B))
        row = num_decodes
        for chunk, context in zip(plan.prefills, step.contexts, strict=True):
            rows = slice(row, row + chunk.length)
            queries = q_nope_THN[rows], q_pe_THR[rows]
            own = mla.plain(*queries, latent_TC[rows], causal_offset=0)
            cached = [mla.plain(*queries, cache.read(layer, s), causal_offset=None) for s in context]
            outputs.append(merge([*cached, own]))
            row = rows.stop
        return torch.cat(outputs)

    return attend


class _StepSlots:
    """Cache slots that a step writes and reads, the same for all layers."""

    def __init__(self, cache: LatentCache, device: torch.device, plan: StepPlan) -> None:
        def long(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        def slots(chunk: Chunk, start: int, stop: int) -> list[int]:
            return cache.slots(chunk.sequence.block_table, start, stop)

        self.written_T = long([s for c in plan.chunks for s in slots(c, c.start, c.start + c.length)])
        lengths = [c.start + 1 for c in plan.decodes]
        longest = max(lengths, default=0)
        # Padding repeats slot 0; `absorbed` masks it by length.
        rows = [slots(c, 0, n) + [0] * (longest - n) for c, n in zip(plan.decodes, lengths, strict=True)]
        self.decode_BS = long([s for row in rows for s in row]).view(len(rows), longest)
        self.lengths_B = long(lengths)
        self.contexts = [
            [long(slots(c, at, min(at + CONTEXT_SEGMENT, c.start))) for at in range(0, c.start, CONTEXT_SEGMENT)]
            for c in plan.prefills
        ]
