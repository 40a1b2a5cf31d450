"""Runs one iteration of the model over a step plan.

T tokens of the step: decodes first, then prefill chunks. D hidden size, N chunks that sample, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from moonshard.attention.kv_cache import LatentCache
from moonshard.attention.paged_steps import make_paged_step
from moonshard.attention.plan import StepPlan
from moonshard.attention.prompt_scores import score_prompts
from moonshard.attention.torch_attention import make_attend
from moonshard.model.decoder import Decoder
from moonshard.model.native_decoder import NativeDecoder

Forward = Callable[[StepPlan, Tensor, Tensor], Tensor]
"""forward(plan, token_ids_T, positions_T) -> hidden_TD: one of the two decoders over the cache."""


class Runner:
    """Decoder and cache together: torch's operators on any device, or the native kernels on CPUs."""

    def __init__(self, decoder: Decoder | NativeDecoder, cache: LatentCache, device: torch.device) -> None:
        self.decoder = decoder
        self.cache = cache
        self._device = device
        self._forward = _forward(decoder, cache, device)

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> Tensor:
        """Logits (float32) of the chunks that sample, in plan order: [N, V]."""
        tokens = [t for c in plan.chunks for t in c.sequence.tokens[c.start : c.start + c.length]]
        positions = [p for c in plan.chunks for p in range(c.start, c.start + c.length)]
        hidden_TD = self._forward(plan, self._long(tokens), self._long(positions))
        score_prompts(plan, hidden_TD, self.decoder.logits)
        return self.decoder.logits(hidden_TD[self._long(_sampling_rows(plan))])

    def _long(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self._device)


def _forward(decoder: Decoder | NativeDecoder, cache: LatentCache, device: torch.device) -> Forward:
    """The one place that knows both."""
    if isinstance(decoder, NativeDecoder):
        native = decoder
        return lambda plan, ids_T, at_T: native.forward(ids_T, at_T, make_paged_step(cache, plan))
    plain = decoder
    return lambda plan, ids_T, at_T: plain.forward(ids_T, at_T, make_attend(cache, device, plan))


def _sampling_rows(plan: StepPlan) -> list[int]:
    rows, end = [], 0
    for chunk in plan.chunks:
        end += chunk.length
        if chunk.samples:
            rows.append(end - 1)
    return rows
