"""Log-probabilities of prompts' own tokens, for those who asked.

T rows of a step, D hidden size, N rows at once, V vocabulary.
"""

from collections.abc import Callable

from torch import Tensor

from moonshard.attention.logprobs import logprobs_of
from moonshard.attention.plan import Chunk, StepPlan

# Rows whose logits are held at once.
NUM_ROWS = 32


def score_prompts(plan: StepPlan, hidden_TD: Tensor, logits: Callable[[Tensor], Tensor]) -> None:
    """Append to each sequence that wants them those of the prompt's tokens that its rows of the step predict.

    logits: hidden_ND -> float32 logits_NV. The first token of a prompt is predicted by nothing and has none.
    """
    row = 0
    for chunk in plan.chunks:
        if chunk.sequence.scores_prompt:
            _score(chunk, hidden_TD[row : row + chunk.length], logits)
        row += chunk.length


def _score(chunk: Chunk, hidden_TD: Tensor, logits: Callable[[Tensor], Tensor]) -> None:
    sequence, num_top = chunk.sequence, chunk.sequence.sampling.prompt_logprobs
    assert num_top is not None, "scores_prompt says so"
    predicted = sequence.prompt[chunk.start + 1 : chunk.start + chunk.length + 1]
    for at in range(0, len(predicted), NUM_ROWS):
        tokens = predicted[at : at + NUM_ROWS]
        rows_NV = logits(hidden_TD[at : at + len(tokens)]).cpu().numpy()
        sequence.prompt_logprobs += [
            logprobs_of(row, token, num_top) for row, token in zip(rows_NV, tokens, strict=True)
        ]
