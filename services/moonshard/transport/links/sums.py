"""The last step of a combine in Python: the answers of all shards, added in their fixed order."""

import torch
from torch import Tensor

from moonshard.transport.contract import WireSpec, sum_by_expert, sum_in_shard_order
from moonshard.transport.links.degraded import renormalise
from moonshard.transport.links.handle import LinkHandle


def add_up(handle: LinkHandle, spec: WireSpec) -> Tensor:
    """y_TD, float32, where the handle's rows are; every shard has answered."""
    num_rows = handle.x_TD.shape[0]
    if spec.sums == "expert":
        apart = [(torch.from_numpy(it.places()), handle.sums[shard]) for shard, it in handle.routes.items()]
        y_TD = sum_by_expert(apart, num_rows, spec.top_k, spec.hidden_size)
    else:
        parts = [
            (None if it.rows_R is None else torch.from_numpy(it.rows_R), handle.sums[shard])
            for shard, it in handle.routes.items()
        ]
        y_TD = sum_in_shard_order(parts, num_rows, spec.hidden_size)
    return renormalise(handle, y_TD).to(handle.x_TD.device)
