"""What a plan needs to know of a machine, and a few that many people have."""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moonshard.config import first_problem
from moonshard.errors import ConfigError

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class Machine(BaseModel):
    """One GPU, or one CPU host. GB are 10^9 bytes, rates per second.

    read_gb_s: memory bandwidth. bf16_tflops, expert_tops: peak arithmetic on BF16 weights and inside INT4 experts
    (INT8 on CPUs, BF16 on GPUs, which unpack). network_gb_s: each way. latency_us: one message and its wake-up.
    step_us, sequence_us: of the attention worker's engine, for a step and for each sequence in it, beside the layers;
    the defaults are those of two Zen 4 cores.
    cores: how many shards work at once where all share this machine. usable: share of memory that weights and KV cache
    may fill. read_share, compute_share: what kernels reach of the peaks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["gpu", "cpu"]
    memory_gb: Positive
    read_gb_s: Positive
    bf16_tflops: Positive
    expert_tops: Positive
    network_gb_s: Positive
    latency_us: Positive = 10.0
    step_us: NotNegative = 700.0
    sequence_us: NotNegative = 110.0
    cores: Annotated[int, Field(ge=1)] = 1
    usable: Share = 0.9
    read_share: Share = 0.85
    compute_share: Share = 0.6

    @property
    def usable_bytes(self) -> float:
        return self.memory_gb * 1e9 * self.usable

    @property
    def read(self) -> float:
        """Bytes a second that kernels read."""
        return self.read_gb_s * 1e9 * self.read_share

    @property
    def bf16(self) -> float:
        """Operations a second on BF16 weights."""
        return self.bf16_tflops * 1e12 * self.compute_share

    @property
    def expert(self) -> float:
        """Operations a second inside experts."""
        return self.expert_tops * 1e12 * self.compute_share


def _gpu(name: str, memory_gb: float, read_gb_s: float, tflops: float, network_gb_s: float) -> Machine:
    return Machine(
        name=name,
        kind="gpu",
        memory_gb=memory_gb,
        read_gb_s=read_gb_s,
        bf16_tflops=tflops,
        expert_tops=tflops,
        network_gb_s=network_gb_s,
    )


# Makers' figures, dense arithmetic; a network card per GPU and per host.
KNOWN = {
    machine.name: machine
    for machine in (
        _gpu("a100-80", 80, 2039, 312, 25),
        _gpu("h100", 80, 3350, 989, 50),
        _gpu("h200", 141, 4800, 989, 50),
        _gpu("b200", 180, 8000, 2250, 50),
        Machine(
            name="cpu-2s",
            kind="cpu",
            memory_gb=768,
            read_gb_s=800,
            bf16_tflops=20,
            expert_tops=40,
            network_gb_s=50,
            latency_us=30,
        ),
    )
}


def read_machine(text: str) -> Machine:
    """A known name, or a TOML file with the fields of Machine. Raises ConfigError naming what is wrong."""
    if known := KNOWN.get(text):
        return known
    path = Path(text)
    if not path.is_file():
        raise ConfigError("machine", f"must be a TOML file or one of {', '.join(KNOWN)}, got {text!r}")
    try:
        return Machine.model_validate({"name": path.stem, **tomllib.loads(path.read_text())})
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("machine", f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        raise first_problem(Machine, error) from None
