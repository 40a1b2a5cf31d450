"""What a demo checkpoint looks like: its dimensions, seed and scales, and the config.json that says so."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any, Self

from moonshard.errors import ConfigError
from moonshard.model.config import ModelConfig
from moonshard_cluster.demo.published import TEXT_FIELDS, WRAPPER_FIELDS
from moonshard_cluster.demo.vocabulary import NUM_SPECIAL, NUM_TRAINED

CALM = 0.15

# Fields that must be multiples of a number: groups of 32 share a scale, and odd widths would leave the tensors that
# follow them in a file unaligned.
_MULTIPLES = {
    "hidden_size": 32,
    "moe_intermediate_size": 32,
    "intermediate_size": 32,
    "q_lora_rank": 2,
    "kv_lora_rank": 2,
    "qk_nope_head_dim": 2,
    "qk_rope_head_dim": 2,
    "v_head_dim": 2,
}


@dataclass(frozen=True)
class DemoSpec:
    """Dimensions have the published names. `calm` scales what layers add to the residual stream.

    With calm 1.0 near-ties in the gate make even two correct engines part within a few tokens.
    Raises ConfigError naming field and value.
    """

    name: str = "custom"
    hidden_size: int = 256
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    q_lora_rank: int = 96
    kv_lora_rank: int = 64
    qk_nope_head_dim: int = 32
    qk_rope_head_dim: int = 16
    v_head_dim: int = 32
    n_routed_experts: int = 384
    num_experts_per_tok: int = 8
    moe_intermediate_size: int = 128
    intermediate_size: int = 512
    vocab_size: int = NUM_TRAINED + NUM_SPECIAL
    seed: int = 0
    calm: float = CALM

    @classmethod
    def tiny(cls, **changes: Any) -> Self:
        """The size for tests: a few megabytes."""
        sizes = {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "q_lora_rank": 32,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 16,
            "v_head_dim": 16,
            "moe_intermediate_size": 32,
            "intermediate_size": 128,
        }
        return cls(**{"name": "tiny", **sizes, **changes})

    @classmethod
    def small(cls, **changes: Any) -> Self:
        """The default demo: about 90 MB."""
        return cls(**{"name": "small", **changes})

    def chaotic(self) -> Self:
        """The same with layers at full strength: for speed tests, not for parity."""
        return dataclasses.replace(self, calm=1.0)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_number(field.name, getattr(self, field.name))
        for name, multiple in _MULTIPLES.items():
            if getattr(self, name) % multiple:
                raise ConfigError(name, f"must be a multiple of {multiple}, got {getattr(self, name)}")
        if self.num_hidden_layers < 2:
            raise ConfigError(
                "num_hidden_layers", f"must be at least 2 (one dense, one MoE), got {self.num_hidden_layers}"
            )
        if self.vocab_size < NUM_TRAINED + NUM_SPECIAL:
            least = NUM_TRAINED + NUM_SPECIAL
            raise ConfigError(
                "vocab_size", f"must be at least {least}, what the demo's tokenizer has, got {self.vocab_size}"
            )
        _ = self.config

    @property
    def special_base(self) -> int:
        """Id of [BOS], the first of the special tokens at the end of the vocabulary."""
        return self.vocab_size - NUM_SPECIAL

    @property
    def config(self) -> ModelConfig:
        """The configuration as the servers will read it."""
        try:
            return ModelConfig.from_json(self.config_json(), self.generation_json())
        except ConfigError as error:
            field = error.field.removeprefix("text_config.")
            raise ConfigError(field, str(error).removeprefix(f"{error.field}: ")) from None

    def generation_json(self) -> dict[str, Any]:
        """generation_config.json: both ends of a turn, <|im_end|> first."""
        return {
            "bos_token_id": self.special_base,
            "eos_token_id": [self.special_base + 2, self.special_base + 1],
            "pad_token_id": self.vocab_size - 1,
        }

    def config_json(self) -> dict[str, Any]:
        """config.json: K2.5's wrapper around the text model. A demo has no vision tower (specification 1.1, 1.2)."""
        tokens = {
            "bos_token_id": self.special_base,
            "eos_token_id": self.special_base + 1,
            "pad_token_id": self.vocab_size - 1,
        }
        return {
            **WRAPPER_FIELDS,
            **tokens,
            "media_placeholder_token_id": self.special_base + 21,
            "text_config": {**self._dimensions(), **TEXT_FIELDS, **tokens},
        }

    def _dimensions(self) -> dict[str, int]:
        own = ("name", "seed", "calm")
        sizes = {key: value for key, value in dataclasses.asdict(self).items() if key not in own}
        return sizes | {"num_key_value_heads": self.num_attention_heads}


def _check_number(name: str, value: Any) -> None:
    if name == "calm":
        if not isinstance(value, int | float) or not (math.isfinite(value) and value > 0):
            raise ConfigError(name, f"must be a number above 0, got {value}")
    elif name == "name":
        if not re.fullmatch(r"[\w.-]+", value):
            raise ConfigError(name, f"must be letters, digits, '.', '-' or '_', got {value!r}")
    else:
        least = 0 if name == "seed" else 1
        if not isinstance(value, int) or value < least:
            raise ConfigError(name, f"must be a whole number of at least {least}, got {value!r}")
