"""What a request changes in the model's logits: penalties for repetition, and biases.

V vocabulary. All in float32 and in a fixed order, so that a row's bits depend on its own sequence alone.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from moonshard.sampling import SamplingParams

Row = NDArray[np.float32]


class Penalties:
    """Of one sequence. Repetition counts prompt and output, frequency and presence the output only."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> None:
        self._params = params
        self._counts = Counter(output)
        self._seen = set(prompt) | set(output) if params.repetition_penalty != 1 else set()
        self._biased = np.array([token for token, _ in params.logit_bias], np.int64)
        self._biases = np.array([bias for _, bias in params.logit_bias], np.float32)

    @classmethod
    def of(cls, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> Self | None:
        """None where the request changes nothing."""
        off = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) == (1, 0, 0)
        return None if off and not params.logit_bias else cls(params, prompt, output)

    def add(self, token: int) -> None:
        """Take the next token of the output."""
        self._counts[token] += 1
        if self._params.repetition_penalty != 1:
            self._seen.add(token)

    def apply(self, logits_V: Row) -> None:
        """In place: repetition scales, frequency and presence subtract, biases add."""
        if self._seen:
            seen = np.fromiter(self._seen, np.int64, len(self._seen))
            factor, found = np.float32(self._params.repetition_penalty), logits_V[seen]
            logits_V[seen] = np.where(found > 0, found / factor, found * factor)
        if self._counts and (self._params.frequency_penalty or self._params.presence_penalty):
            tokens = np.fromiter(self._counts.keys(), np.int64, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            frequency, presence = np.float32(self._params.frequency_penalty), np.float32(self._params.presence_penalty)
            logits_V[tokens] -= frequency * counts + presence
        logits_V[self._biased] += self._biases
