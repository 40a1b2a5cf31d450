"""Going on without a lost shard, where the operator allows it: its experts are left out, the others' weights raised.

Shapes: T rows of a step, K experts per token, D hidden size.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from moonshard.transport.contract import WireSpec
from moonshard.transport.links.handle import LinkHandle, ShardLink


class Degraded:
    """after_s: how long a shard must have been lost; 0 is never. rows: those of the step that lack an expert by now."""

    def __init__(self, after_s: float, num_shards: int) -> None:
        self.rows: set[int] = set()
        self._after_s = after_s
        self._num_shards = num_shards

    def begins_s(self, link: ShardLink, lost_shards: Sequence[int]) -> float:
        """When rows go on without the shard of this lost link; infinity is never. With more than half of the shards
        lost nothing would be left of the model: then they are waited for, as where it is not allowed."""
        if not self._after_s or 2 * len(lost_shards) > self._num_shards:
            return math.inf
        return link.lost_s + self._after_s

    def leave_out(self, handle: LinkHandle, shard: int, spec: WireSpec) -> None:
        """The shard's part of the handle's sums is nothing."""
        asked = handle.routes[shard]
        handle.sums[shard] = torch.zeros(asked.num_sums, spec.hidden_size)
        handle.left_out.append(shard)
        self.rows.update(range(handle.x_TD.shape[0]) if asked.rows_R is None else asked.rows_R.tolist())


def renormalise(handle: LinkHandle, y_TD: Tensor) -> Tensor:
    """Sums as if the weights of the experts that answered were those of all; rows that lack none keep their bits. A row
    without any expert left has its shared expert only."""
    if not handle.left_out:
        return y_TD
    weights_TK = handle.topk_weights_TK.detach().to("cpu", torch.float32)
    kept_TK = weights_TK.clone()
    for shard in handle.left_out:
        kept_TK.view(-1)[torch.from_numpy(handle.routes[shard].places())] = 0.0
    kept_T = kept_TK.sum(dim=1)
    scale_T = torch.where(kept_T > 0, weights_TK.sum(dim=1) / kept_T, 1.0)
    return y_TD * scale_T.unsqueeze(1)
