"""What a training run is: the model's shape, the optimiser's numbers, how long. Frozen; a resumed run must match."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Self

from moonshard.errors import ConfigError
from moonshard_cluster.demo.spec import DemoSpec

# Counted in tokens of the trained vocabulary, special tokens included.
VOCAB_SIZE = 3072


def demo_shape() -> DemoSpec:
    """The shipped model: 384 experts top-8 in three MoE layers after a dense one, under 16 MB in INT4."""
    return DemoSpec(
        name="trained",
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        q_lora_rank=96,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        moe_intermediate_size=32,
        intermediate_size=384,
        vocab_size=VOCAB_SIZE,
    )


@dataclass(frozen=True)
class Recipe:
    """`rows` sequences of `row_length` tokens make a batch. Fractions are of `num_steps`.

    Raises ConfigError naming field and value.
    """

    spec: DemoSpec = dataclasses.field(default_factory=demo_shape)
    num_steps: int = 2000
    rows: int = 10
    row_length: int = 384
    seed: int = 0
    muon_lr: float = 6e-3
    adam_lr: float = 4e-3
    warmup_steps: int = 30
    final_lr: float = 0.03
    momentum: float = 0.95
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    qk_threshold: float | None = 30.0
    bias_rate: float | None = 4e-3
    quantised_fraction: float = 0.25

    def __post_init__(self) -> None:
        for name in ("num_steps", "rows", "row_length"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.quantised_fraction <= 1:
            raise ConfigError("quantised_fraction", f"must be in 0..1, got {self.quantised_fraction}")
        if self.qk_threshold is not None and self.qk_threshold <= 0:
            raise ConfigError("qk_threshold", f"must be positive, got {self.qk_threshold}")

    def lr_factor(self, step: int) -> float:
        """Multiplier of both learning rates: linear warm-up, then half a cosine down to `final_lr`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.num_steps - self.warmup_steps)
        return self.final_lr + (1 - self.final_lr) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def is_quantised(self, step: int) -> bool:
        """Whether routed experts compute with rounded weights in this step: the run's last part."""
        return step >= round(self.num_steps * (1 - self.quantised_fraction))

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(**{**values, "spec": DemoSpec(**values["spec"])})
