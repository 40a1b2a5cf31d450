"""Engines over a reference model, and a router's twin that serves requests with them to their end."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch

from moonshard.attention.engine import Engine, Output
from moonshard.attention.guide import Guide
from moonshard.attention.kv_cache import LatentCache
from moonshard.attention.runner import Runner
from moonshard.attention.scheduler import Scheduler
from moonshard.attention.sequence import Sequence
from moonshard.config import AttentionConfig
from moonshard.grammar import GrammarEngine
from moonshard.model.decoder import Decoder
from moonshard.model.native_decoder import NativeDecoder
from moonshard.sampling import SamplingParams, TokenLogprobs

CPU = torch.device("cpu")


def make_engine(
    decoder: Decoder | NativeDecoder, cache_dtype: torch.dtype = torch.float32, **limits: int | bool
) -> Engine:
    config = AttentionConfig(**{"block_size": 8, "num_blocks": 128, **limits})  # type: ignore[arg-type]
    model = decoder.config
    shape = model.num_hidden_layers, config.num_blocks, config.block_size, model.latent_dim
    return Engine(Scheduler(config), Runner(decoder, LatentCache(*shape, cache_dtype, CPU), CPU))


@dataclass
class Asked:
    """A request and what came of it. grammar: text, and the token behind which it is in force."""

    name: str
    prompt: list[int]
    sampling: SamplingParams
    grammar: tuple[str, int | None] | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_cached_tokens: int = 0
    num_preempted: int = 0
    last: Output | None = None

    @classmethod
    def of(cls, name: str, prompt: list[int], max_tokens: int = 12, **params: object) -> "Asked":
        sampling = {"temperature": 0.0, "max_tokens": max_tokens, **params}
        return cls(name, prompt, SamplingParams(**sampling))  # type: ignore[arg-type]

    def again(self, name: str) -> "Asked":
        return replace(self, name=name, tokens=[], logprobs=[], prompt_logprobs=[], num_preempted=0)

    def sequence(self, grammars: GrammarEngine | None) -> Sequence:
        guide = None
        if self.grammar:
            assert grammars
            guide = Guide(grammars.matcher(self.grammar[0]), self.grammar[1])
        return Sequence(self.name, self.prompt, self.sampling, list(self.tokens), guide)

    def take(self, output: Output) -> None:
        assert not output.error, output.error
        if output.preempted:
            self.num_preempted += 1
            return
        assert output.token is not None
        self.tokens.append(output.token)
        self.logprobs.append(output.logprobs)
        self.prompt_logprobs += output.prompt_logprobs
        self.num_cached_tokens += output.num_cached_tokens
        self.last = output


def serve(engine: Engine, requests: Iterable[Asked], grammars: GrammarEngine | None = None, steps: int = 2000) -> None:
    """Admit all at once, and again whom the engine preempts, until everyone has ended."""
    asked = {request.name: request for request in requests}
    waiting, running = deque(asked.values()), 0
    for _ in range(steps):
        outputs: list[Output] = []
        while waiting and not outputs:
            outputs += engine.admit([waiting[0].sequence(grammars)])
            if not outputs:
                waiting.popleft()
                running += 1
        outputs = [output for output in outputs if not output.preempted]
        plan = engine.plan()
        outputs += [Output(sequence.request_id, preempted=True) for sequence in plan.preempted]
        outputs += engine.step(plan)
        for output in outputs:
            asked[output.request_id].take(output)
            running -= bool(output.finish_reason or output.preempted)
        waiting.extendleft(asked[s.request_id] for s in plan.preempted)
        if not waiting and not running:
            return
    raise AssertionError(f"not done after {steps} steps")
