"""From logits to tokens.

A sampled token depends on the logits, the request's seed and the token's position, and on nothing else that runs:
the one random number a token needs is a hash of seed and position. N rows, V vocabulary.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from moonshard.attention.draw import draw, uniform
from moonshard.attention.logprobs import logprobs_of
from moonshard.attention.penalties import Row
from moonshard.attention.sequence import Sequence
from moonshard.errors import RequestError
from moonshard.sampling import SamplingParams, TokenLogprobs


@dataclass(frozen=True, slots=True)
class Choice:
    """The next token of one sequence, or why there is none. logprobs: when the request asks for them."""

    token: int = -1
    logprobs: TokenLogprobs | None = None
    error: str = ""


def sample(logits_NV: Tensor, sequences: list[Sequence]) -> list[Choice]:
    """One choice per row of float32 logits."""
    # A sum is infinite or NaN when one of its terms is; twenty times faster than to look at each.
    finite_N = logits_NV.sum(dim=-1).isfinite().tolist()
    rows_NV = logits_NV.cpu().numpy()
    return [
        _choose(logits_V, sequence) if finite else Choice(error=f"non-finite logits at token {len(sequence.tokens)}")
        for logits_V, sequence, finite in zip(rows_NV, sequences, finite_N, strict=True)
    ]


def _choose(logits_V: Row, sequence: Sequence) -> Choice:
    params = sequence.sampling
    if sequence.penalties:
        logits_V = logits_V.copy()
        sequence.penalties.apply(logits_V)
    try:
        allowed_V = _allowed(sequence, len(logits_V))
    except RequestError as error:
        return Choice(error=str(error))
    left_V = logits_V if allowed_V is None else np.where(allowed_V, logits_V, np.float32(-np.inf))
    token = _token(left_V, params, len(sequence.tokens))
    return Choice(token, None if params.logprobs is None else logprobs_of(logits_V, token, params.logprobs))


def _token(logits_V: Row, params: SamplingParams, position: int) -> int:
    if params.temperature == 0 or params.top_k == 1:
        return int(logits_V.argmax())
    assert params.seed is not None, "the router draws a seed where the request gives none"
    return draw(logits_V, params, uniform(params.seed, position))


def _allowed(sequence: Sequence, vocab_size: int) -> NDArray[np.bool_] | None:
    """[V]: what the grammar allows, less the tokens that would end the output too early; None when all is allowed.

    Where the grammar allows nothing else, the output ends early.
    """
    allowed_V = sequence.guide.allowed(vocab_size) if sequence.guide else None
    if not sequence.must_go_on:
        return allowed_V
    longer_V = np.ones(vocab_size, np.bool_) if allowed_V is None else allowed_V.copy()
    longer_V[list(sequence.sampling.stop_token_ids)] = False
    return longer_V if longer_V.any() else allowed_V
