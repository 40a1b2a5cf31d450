"""Lockstep transport over `torch.distributed.all_to_all_single`: NCCL on CUDA devices, gloo otherwise.

Expert ranks first: shard i is rank i, then the attention workers that belong to the group. A group lives for one
epoch of the membership; `Meeting` forms the next one.
"""

from moonshard.transport.all_to_all.dispatcher import AllToAllDispatcher, AllToAllHandle
from moonshard.transport.all_to_all.endpoint import AllToAllEndpoint
from moonshard.transport.all_to_all.group import Group
from moonshard.transport.all_to_all.joining import join_group
from moonshard.transport.all_to_all.meeting import Meeting, Roster, Seat

__all__ = [
    "AllToAllDispatcher",
    "AllToAllEndpoint",
    "AllToAllHandle",
    "Group",
    "Meeting",
    "Roster",
    "Seat",
    "join_group",
]
