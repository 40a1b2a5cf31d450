"""What one iteration runs."""

from dataclasses import dataclass

from moonshard.attention.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens [start, start + length) of a sequence run in this step; `samples` when they reach its last token."""

    sequence: Sequence
    start: int
    length: int

    @property
    def samples(self) -> bool:
        return self.start + self.length == len(self.sequence.tokens)

    @property
    def is_decode(self) -> bool:
        return self.length == 1 and self.samples


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One iteration: decodes first, then prefill chunks. preempted: who lost their blocks to make it possible."""

    decodes: tuple[Chunk, ...]
    prefills: tuple[Chunk, ...]
    preempted: tuple[Sequence, ...] = ()

    @property
    def chunks(self) -> tuple[Chunk, ...]:
        return self.decodes + self.prefills

    @property
    def num_tokens(self) -> int:
        return sum(chunk.length for chunk in self.chunks)
