"""The reference against transformers, the outside oracle: FP32 logits within 1e-4 at every position."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from moonshard.model.reference import Reference
from tests.unit.model.tiny_checkpoint import deepseek_text, dequantised, kimi_text, plain, save, tensors, wrapped

LATENT_NORM_EPS = 1e-6  # what transformers builds the two latent norms with
SHAPES = {
    "kimi INT4": wrapped(kimi_text()),
    "kimi plain": wrapped(kimi_text(), quantized=False),
    "deepseek plain": plain(deepseek_text()),
    "deepseek INT4": plain(deepseek_text(), quantized=True),
    "no yarn, raw weights": plain(kimi_text(rope_scaling=None, norm_topk_prob=False)),
}
PROMPT_LENGTHS = (1, 2, 3, 7, 16, 33, 64, 65, 100, 150)


def oracle(raw: dict[str, Any], named: dict[str, Tensor]) -> Any:
    """transformers' model on the dequantised weights, experts fused as its code keeps them."""
    text = raw.get("text_config", raw)
    ours = ("quantization_config", "model_type", "architectures")
    # Our small models stretch less than the factor says; the oracle warns unless told the stretched length.
    scaling = text["rope_scaling"]
    length = int(scaling["factor"] * scaling["original_max_position_embeddings"]) if scaling else 4096
    config = DeepseekV3Config(**{k: v for k, v in text.items() if k not in ours} | {"max_position_embeddings": length})
    model: Any = DeepseekV3ForCausalLM(config)
    state = dequantised(named)
    for layer in range(text["first_k_dense_replace"], text["num_hidden_layers"]):
        stem = f"model.layers.{layer}.mlp.experts"
        experts = range(text["n_routed_experts"])
        gate, up, down = (
            torch.stack([state.pop(f"{stem}.{e}.{p}_proj.weight") for e in experts]) for p in ("gate", "up", "down")
        )
        state |= {f"{stem}.gate_up_proj": torch.cat((gate, up), 1), f"{stem}.down_proj": down}
    model.load_state_dict(state)
    return model.float().eval()


@pytest.fixture(scope="module", params=SHAPES, ids=list(SHAPES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Reference, Any]:
    raw, path = SHAPES[request.param], tmp_path_factory.mktemp("parity")
    named = tensors(raw, seed=1)
    save(path, raw, named)
    return Reference.load(path, latent_norm_eps=LATENT_NORM_EPS), oracle(raw, named)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 384, (n,), generator=generator).tolist() for n in PROMPT_LENGTHS]


def test_logits_at_every_position(pair: tuple[Reference, Any]) -> None:
    ours, theirs = pair
    with torch.inference_mode():
        for prompt in prompts():
            expected = theirs(torch.tensor([prompt])).logits[0]
            torch.testing.assert_close(ours.logits(prompt), expected, rtol=0, atol=1e-4)


def test_greedy_tokens(pair: tuple[Reference, Any]) -> None:
    ours, theirs = pair
    prompt = prompts()[4]
    expected = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=24, do_sample=False, eos_token_id=None, pad_token_id=383
    )
    assert ours.greedy(prompt, 24) == expected[0, len(prompt) :].tolist()


def test_the_latent_norm_eps_is_heard(tmp_path: Path) -> None:
    """By default rms_norm_eps (1e-5) holds for the latent norms too: close to 1e-6, yet not the same."""
    raw = wrapped(kimi_text())
    save(tmp_path, raw, tensors(raw, seed=1))
    default, same, other = (Reference.load(tmp_path, latent_norm_eps=eps) for eps in (None, 1e-5, 1e-6))
    prompt = prompts()[3]
    assert torch.equal(default.logits(prompt), same.logits(prompt))
    assert 0 < (default.logits(prompt) - other.logits(prompt)).abs().max() < 1e-3
