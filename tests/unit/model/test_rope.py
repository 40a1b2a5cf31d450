"""Rope and YaRN against the numbers of specification 2.4."""

from pathlib import Path

import pytest
import torch

from moonshard.model.config import ModelConfig
from moonshard.model.rope import Rope, inverse_frequencies, ramp_bounds, rotate
from tests.unit.model.tiny_checkpoint import kimi_text


def test_the_ramp_of_the_published_models(shared_data: Path) -> None:
    config = ModelConfig.from_dir(shared_data / "kimi-k2.5")
    assert config.rope is not None
    assert ramp_bounds(config.rope, 64, config.rope_theta) == (8, 20)
    thinking = config.rope.model_copy(update={"beta_fast": 1.0})
    assert ramp_bounds(thinking, 64, config.rope_theta) == (19, 20)
    assert config.rope.cos_sin_scale == 1.0
    inv_freq = inverse_frequencies(config).double()
    plain = 50000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    torch.testing.assert_close(inv_freq[:9], plain[:9], rtol=1e-6, atol=0)
    torch.testing.assert_close(inv_freq[20:], plain[20:] / 64, rtol=1e-6, atol=0)
    torch.testing.assert_close(inv_freq[14], plain[14] * 0.5 + plain[14] / 64 * 0.5, rtol=1e-6, atol=0)


def test_pairs_are_interleaved_and_stay_so() -> None:
    rope = Rope(ModelConfig.from_json(kimi_text(rope_scaling=None)))
    x, position = torch.randn(16), 5
    rotated = rotate(x.unsqueeze(0), rope.rotations(torch.tensor([position])))[0]
    for i in range(8):
        angle = torch.tensor(position * 50000.0 ** (-2 * i / 16))
        first = x[2 * i] * angle.cos() - x[2 * i + 1] * angle.sin()
        second = x[2 * i] * angle.sin() + x[2 * i + 1] * angle.cos()
        torch.testing.assert_close(rotated[2 * i : 2 * i + 2], torch.stack((first, second)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", [1, 100])
def test_scores_depend_on_distance_only(shift: int) -> None:
    rope = Rope(ModelConfig.from_json(kimi_text()))
    q, k = torch.randn(2, 1, 16)
    scores = [
        rotate(q, rope.rotations(torch.tensor([7 + s]))) @ rotate(k, rope.rotations(torch.tensor([3 + s]))).T
        for s in (0, shift)
    ]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-4)
