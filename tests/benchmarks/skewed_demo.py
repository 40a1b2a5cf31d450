"""A demo checkpoint whose gates like some experts of the first shards better: shard load as uneven as is asked for."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SAMPLES = 2048


def skew(checkpoint: Path, num_shards: int, ratio: float, num_hot: int, seed: int = 0) -> None:
    """Change the gates' biases in place: in each layer num_hot experts of the first half of the shards, at random, are
    chosen so often that this half gets `ratio` times the rows of the other, for rows that point anywhere."""
    draw = torch.Generator().manual_seed(seed)
    for path in checkpoint.glob("*.safetensors"):
        tensors = load_file(path)
        gates = {name: tensors[name] for name in tensors if re.search(r"mlp\.gate\.weight$", name)}
        for name, weight_ED in gates.items():
            half = len(weight_ED) // num_shards * (num_shards // 2)
            hot = torch.randperm(half, generator=draw)[:num_hot]
            x_TD = torch.randn(SAMPLES, weight_ED.shape[1], generator=draw)
            bias_E = tensors[name.replace("gate.weight", "gate.e_score_correction_bias")]
            bias_E[hot] += _added(torch.sigmoid(x_TD @ weight_ED.float().T) + bias_E, hot, half, ratio / (1 + ratio))
        if gates:
            save_file(tensors, path)


def _added(scores_TE: Tensor, hot: Tensor, half: int, share: float) -> float:
    """By how much the hot experts' scores must grow for the first half to get its share; bisection."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        moved_TE = scores_TE.clone()
        moved_TE[:, hot] += middle
        found = (moved_TE.topk(8, dim=1).indices < half).float().mean().item()
        low, high = (middle, high) if found < share else (low, middle)
    return high
