"""What gateways ask of a checkpoint: its bundle, how to read their prompts, facts of config.json. No weights."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from moonshard.router.gateway.bundle import Bundle, build_bundle
from moonshard.router.gateway.prompts import PromptReader
from moonshard.tokenizer import Tokenizer
from moonshard.tokenizer.files import read_json


@dataclass(frozen=True)
class GatewayModel:
    """bundle is made when it is first asked for; it raises CheckpointError. trusts: as router.trust_control_tokens."""

    checkpoint: Path
    tokenizer: Tokenizer
    eos_token_ids: tuple[int, ...]
    trusts: bool = False

    @cached_property
    def bundle(self) -> Bundle:
        return build_bundle(self.checkpoint, self.tokenizer.special_tokens, self.eos_token_ids, self.trusts)

    @cached_property
    def prompts(self) -> PromptReader:
        return PromptReader(self.tokenizer)

    @cached_property
    def facts(self) -> "ModelFacts":
        config = read_json(self.checkpoint / "config.json")
        return ModelFacts(
            model_type=str(config.get("model_type", "")),
            architectures=tuple(map(str, config.get("architectures") or ())),
            bos_token_id=_id(config.get("bos_token_id")),
            pad_token_id=_id(config.get("pad_token_id")),
        )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """As config.json tells them; ids that it does not tell are 0."""

    model_type: str
    architectures: tuple[str, ...]
    bos_token_id: int
    pad_token_id: int


def _id(value: object) -> int:
    return value if isinstance(value, int) else 0
