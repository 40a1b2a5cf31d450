"""How the prefill budget of an iteration is shared. Pure."""

from collections.abc import Sequence


def share_budget(num_pending: Sequence[int], budget: int) -> list[int]:
    """Tokens to run of each prompt, oldest first, given how many each still has.

    Half of the budget is the oldest's, so that everyone's turn comes; the rest goes to those with least left, so that a
    short prompt never waits for a long one.
    """
    shares = [0] * len(num_pending)
    if not num_pending:
        return shares
    shares[0] = min(num_pending[0], -(-budget // 2))
    budget -= shares[0]
    for place in sorted(range(len(num_pending)), key=lambda place: (num_pending[place] - shares[place], place)):
        more = min(num_pending[place] - shares[place], budget)
        shares[place] += more
        budget -= more
    return shares
