"""What one model costs: bytes that are held and read, operations that are done. From its config alone."""

from dataclasses import dataclass
from functools import lru_cache
from math import comb, sqrt
from statistics import NormalDist
from typing import Literal, Self

from moonshard.errors import ConfigError
from moonshard.model.config import ModelConfig
from moonshard.model.inventory import EXPERT_PROJECTIONS, attention_tensors, expert_tensors, projection_shape

Format = Literal["int4", "bf16"]
INT4_BITS = 4.5  # packed nibbles, and a BF16 scale for each 32 (specification 4.1)
BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one model with its experts in one format. Bytes; operations count multiply and add as two.

    attention_bytes: all that an attention worker holds. attention_read: what one step reads of it, which is all but
    the embedding table. scores_ops: of one token against one cached token, absorbed form. row_bytes: on the wire.
    """

    num_experts: int
    top_k: int
    num_moe_layers: int
    num_layers: int
    expert_bytes: int
    expert_ops: int
    attention_bytes: int
    attention_read: int
    attention_ops: int
    scores_ops: int
    kv_bytes: int
    row_bytes: int

    @classmethod
    def of(cls, model: ModelConfig, form: Format) -> Self:
        tensors = list(attention_tensors(model))
        embedding = model.vocab_size * model.hidden_size
        held = sum(tensor.num_bytes for tensor in tensors)
        weights = sum(rows * columns for rows, columns in (_matrix(t.shape) for t in tensors)) - embedding
        return cls(
            num_experts=model.n_routed_experts,
            top_k=model.num_experts_per_tok,
            num_moe_layers=len(model.moe_layers),
            num_layers=model.num_hidden_layers,
            expert_bytes=_expert_bytes(model, form),
            expert_ops=2 * _expert_weights(model),
            attention_bytes=held,
            attention_read=held - embedding * BF16_BYTES,
            attention_ops=2 * weights,
            scores_ops=2
            * model.num_hidden_layers
            * model.num_attention_heads
            * (model.latent_dim + model.kv_lora_rank),
            kv_bytes=model.kv_bytes_per_token(),
            row_bytes=model.hidden_size * BF16_BYTES,
        )

    @property
    def all_experts_bytes(self) -> int:
        return self.expert_bytes * self.num_experts * self.num_moe_layers

    @property
    def total_bytes(self) -> int:
        """Of the text model."""
        return self.all_experts_bytes + self.attention_bytes

    @property
    def expert_read_at_batch_1(self) -> int:
        return self.expert_bytes * self.top_k * self.num_moe_layers

    def active_experts(self, num_tokens: float) -> float:
        """Distinct experts of a layer that `num_tokens` tokens choose, were all equally likely."""
        return self.num_experts * float(1 - (1 - self.top_k / self.num_experts) ** num_tokens)

    def unevenness(self, num_tokens: float, parts: int) -> float:
        """How much more than its share of the active experts the fullest of `parts` equal groups has, by that share.

        Counts as normal variables that add up to what is active: few experts fall unevenly, many do not.
        """
        active = self.active_experts(num_tokens)
        if parts == 1 or active <= 0:
            return 0.0
        share = active / parts
        fullest = share + _largest_of(parts) * sqrt(share * max(0.0, 1 - active / self.num_experts))
        return min(fullest, active, self.num_experts / parts) / share - 1

    def shards_per_row(self, num_shards: int) -> float:
        """On how many shards the experts of one token fall on average."""
        if self.num_experts % num_shards:
            raise ConfigError("shards", f"must divide {self.num_experts} experts, got {num_shards}")
        others = self.num_experts - self.num_experts // num_shards
        return num_shards * (1 - comb(others, self.top_k) / comb(self.num_experts, self.top_k))

    def network_bytes(self, num_shards: int) -> float:
        """Of one token, both ways, over all layers."""
        return 2 * self.row_bytes * self.shards_per_row(num_shards) * self.num_moe_layers


@lru_cache
def _largest_of(count: int) -> float:
    """Expected largest of `count` independent standard normal variables."""
    step, normal = 0.01, NormalDist()
    places = (-5 + step * at for at in range(1001))
    return sum(x * count * normal.pdf(x) * normal.cdf(x) ** (count - 1) for x in places) * step


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], shape[1]) if len(shape) == 2 else (0, 0)


def _expert_weights(model: ModelConfig) -> int:
    return sum(rows * columns for rows, columns in (projection_shape(model, p) for p in EXPERT_PROJECTIONS))


def _expert_bytes(model: ModelConfig, form: Format) -> int:
    """As stored where the checkpoint has this format, else as it would be."""
    if form == "bf16":
        return _expert_weights(model) * BF16_BYTES
    if model.quantization is not None:
        return sum(tensor.num_bytes for tensor in expert_tensors(model, model.moe_layers[0], 0))
    return int(_expert_weights(model) * INT4_BITS / 8)
