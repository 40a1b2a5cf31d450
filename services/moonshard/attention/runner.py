"""Runs one iteration of the model over a step plan.

T tokens of the step: B decodes first, then prefill chunks. H heads, N and R the no-rope and rope parts of a query,
C the latent's width, V the value's; S slots of the longest decoding sequence.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from moonshard.attention.kv_cache import LatentCache
from moonshard.attention.scheduler import Chunk, StepPlan
from moonshard.model.decoder import Decoder
from moonshard.model.mla import MLA, merge

# Cached context is expanded to keys and values in pieces of this many tokens, to bound memory on long prompts.
CONTEXT_SEGMENT = 2048


class Runner:
    """Decoder and cache together."""

    def __init__(self, decoder: Decoder, cache: LatentCache, device: torch.device) -> None:
        self.decoder = decoder
        self.cache = cache
        self._device = device

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> Tensor:
        """Logits (float32) of the chunks that sample, in plan order: [num sampling chunks, vocabulary]."""
        tokens = [t for c in plan.chunks for t in c.sequence.tokens[c.start : c.start + c.length]]
        positions = [p for c in plan.chunks for p in range(c.start, c.start + c.length)]
        hidden_TD = self.decoder.forward(self._long(tokens), self._long(positions), self._attend(plan))
        return self.decoder.logits(hidden_TD[self._long(_sampling_rows(plan))])

    def _attend(self, plan: StepPlan) -> Callable[[int, MLA, Tensor, Tensor, Tensor], Tensor]:
        step = _StepSlots(self, plan)

        def attend(layer: int, mla: MLA, q_nope_THN: Tensor, q_pe_THR: Tensor, latent_TC: Tensor) -> Tensor:
            self.cache.write(layer, step.written_T, latent_TC)
            outputs = []
            if num_decodes := len(plan.decodes):
                latent_BSC = self.cache.read(layer, step.decode_BS)
                decodes = slice(0, num_decodes)
                outputs.append(mla.absorbed(q_nope_THN[decodes], q_pe_THR[decodes], latent_BSC, step.lengths_B))
            row = num_decodes
            for chunk, context in zip(plan.prefills, step.contexts, strict=True):
                rows = slice(row, row + chunk.length)
                queries = q_nope_THN[rows], q_pe_THR[rows]
                own = mla.plain(*queries, latent_TC[rows], causal_offset=0)
                cached = [mla.plain(*queries, self.cache.read(layer, s), causal_offset=None) for s in context]
                outputs.append(merge([*cached, own]))
                row = rows.stop
            return torch.cat(outputs)

        return attend

    def _long(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


class _StepSlots:
    """Cache slots that a step writes and reads, the same for all layers."""

    def __init__(self, runner: Runner, plan: StepPlan) -> None:
        cache, long = runner.cache, runner._long

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


def _sampling_rows(plan: StepPlan) -> list[int]:
    rows, end = [], 0
    for chunk in plan.chunks:
        end += chunk.length
        if chunk.samples:
            rows.append(end - 1)
    return rows
