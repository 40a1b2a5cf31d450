"""Who may belong to a cell and what is said to them: the nouns of membership."""

from dataclasses import dataclass
from enum import Enum


class Role(Enum):
    ATTENTION = "attention"
    EXPERT = "expert"


class WorkerState(Enum):
    LOADING = "loading"
    LOADED = "loaded"
    READY = "ready"
    DRAINING = "draining"


BEFORE_READY = (WorkerState.LOADING, WorkerState.LOADED)


@dataclass(frozen=True, slots=True)
class WorkerId:
    role: Role
    rank: int

    def __str__(self) -> str:
        return f"{self.role.value}-{self.rank}"


@dataclass(frozen=True, slots=True)
class Credits:
    """What an attention worker can take. block_size: tokens per KV block."""

    block_size: int
    num_blocks: int
    max_num_seqs: int
    max_step_tokens: int

    @property
    def kv_capacity(self) -> int:
        """Tokens."""
        return self.block_size * self.num_blocks


@dataclass(frozen=True, slots=True)
class Vitals:
    """The last heartbeat. Totals since the worker's start."""

    progress: int = 0
    loaded_bytes: int = 0
    total_bytes: int = 0
    tokens: int = 0
    resident_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Worker:
    """A joined worker. experts: logical experts of a shard, empty for an attention worker.

    epoch: the last it heard of, from a router before this one.
    """

    id: WorkerId
    pid: int
    host: str
    metrics_address: str
    experts: range
    checkpoint_id: str
    epoch: int = 0
    state: WorkerState = WorkerState.LOADING
    data_address: str = ""
    credits: Credits | None = None
    vitals: Vitals = Vitals()

    def describe(self) -> str:
        return f"{self.id} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class Welcome:
    epoch: int


@dataclass(frozen=True, slots=True)
class ShardCopy:
    shard: int
    replica: int
    data_address: str


@dataclass(frozen=True, slots=True)
class Members:
    """copies: those that are ready, by rank. attention: the workers of all_to_all's group of this epoch, if any."""

    epoch: int
    copies: tuple[ShardCopy, ...]
    attention: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Outgoing:
    to: WorkerId
    message: Welcome | Members
