"""Lockstep transport over `torch.distributed.all_to_all_single`: NCCL on CUDA devices, gloo otherwise.

Expert ranks first: shard i is rank i, attention worker j is rank num_shards + j.
"""

from moonshard.transport.all_to_all.dispatcher import AllToAllDispatcher, AllToAllHandle
from moonshard.transport.all_to_all.endpoint import AllToAllEndpoint
from moonshard.transport.all_to_all.group import Group, join_group

__all__ = ["AllToAllDispatcher", "AllToAllEndpoint", "AllToAllHandle", "Group", "join_group"]
