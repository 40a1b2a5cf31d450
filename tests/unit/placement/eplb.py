"""DeepSeek's published EPLB, global policy, for one layer: what ours is compared with. After its description:

copies go one by one to the expert with most load per copy; copies are packed, heaviest first, into the shard with least
load among those with room, two copies of one expert in one shard included.
"""

from collections.abc import Sequence


def eplb_balancedness(load: Sequence[int], num_shards: int, slots_per_shard: int) -> float:
    """Mean by maximum over the shards."""
    copies = [1] * len(load)
    for _ in range(num_shards * slots_per_shard - len(load)):
        hottest = max(range(len(load)), key=lambda expert: load[expert] / copies[expert])
        copies[hottest] += 1
    items = [load[expert] / copies[expert] for expert in range(len(load)) for _ in range(copies[expert])]
    filled, count = [0.0] * num_shards, [0] * num_shards
    for weight in sorted(items, reverse=True):
        able = [shard for shard in range(num_shards) if count[shard] < slots_per_shard]
        shard = min(able, key=lambda shard: filled[shard])
        filled[shard] += weight
        count[shard] += 1
    return sum(filled) / num_shards / max(filled)
