"""What the router knows of the checkpoint it fronts: facts of config.json, tokenizer, template. No weights."""

from dataclasses import dataclass

from moonshard.config import CellConfig
from moonshard.model.config import ModelConfig
from moonshard.router.chat.prompt import PromptWriter
from moonshard.router.gateway.served import GatewayModel
from moonshard.router.template import ChatTemplate
from moonshard.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, slots=True)
class ServedModel:
    """gateway: what the gateways' service needs besides; without it that service is not offered."""

    name: str
    checkpoint_id: str
    vocab_size: int
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]
    num_experts: int
    num_experts_per_token: int
    num_layers: int
    tokenizer: Tokenizer
    prompts: PromptWriter
    moe_layers: tuple[int, ...] = ()
    gateway: GatewayModel | None = None


def load_served_model(config: CellConfig) -> ServedModel:
    """Read the checkpoint's small files. Raises ConfigError or CheckpointError."""
    model = ModelConfig.from_dir(config.checkpoint)
    tokenizer = load_tokenizer(config.checkpoint)
    eos_token_ids = tuple(model.eos_token_ids)
    template = ChatTemplate.load(config.checkpoint)
    return ServedModel(
        name=config.model_name or config.checkpoint.resolve().name,
        checkpoint_id=model.checkpoint_id,
        vocab_size=model.vocab_size,
        max_position_embeddings=model.max_position_embeddings,
        eos_token_ids=eos_token_ids,
        num_experts=model.n_routed_experts,
        num_experts_per_token=model.num_experts_per_tok,
        num_layers=model.num_hidden_layers,
        moe_layers=model.moe_layers,
        tokenizer=tokenizer,
        gateway=GatewayModel(config.checkpoint, tokenizer, eos_token_ids, config.router.trust_control_tokens),
        prompts=PromptWriter(tokenizer, template, config.router.trust_control_tokens),
    )
