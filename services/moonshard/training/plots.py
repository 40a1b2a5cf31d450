"""Pictures of runs' metrics logs. Needs matplotlib, which the extra `train` brings."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
from matplotlib import pyplot as plt

_SMOOTH = 20

Log = Sequence[Mapping[str, Any]]


def read_log(path: Path) -> Log:
    return [json.loads(line) for line in path.read_text().splitlines()]


def draw_run(log_file: Path, folder: Path) -> None:
    """loss.png, logits.png and balance.png of one run."""
    folder.mkdir(parents=True, exist_ok=True)
    log = read_log(log_file)
    draw(folder / "loss.png", "loss", {"training": [m["loss"] for m in log]}, log_scale=True)
    draw(folder / "logits.png", "largest attention logit", {"run": [m["max_logit"] for m in log]})
    layers = log[0]["balancedness"]
    balance = {f"layer {layer}": [m["balancedness"][layer] for m in log] for layer in layers}
    draw(folder / "balance.png", "mean load / largest load", balance)


def draw(path: Path, label: str, curves: Mapping[str, Sequence[float]], log_scale: bool = False) -> None:
    """Curves over steps, thin as they are and thick as running means."""
    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    for name, values in curves.items():
        (line,) = axes.plot(range(1, len(values) + 1), values, linewidth=0.5, alpha=0.4)
        means = running_mean(values, _SMOOTH)
        axes.plot(range(1, len(means) + 1), means, label=name, color=line.get_color())
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    if log_scale:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """Of the last `width` values at each place, fewer at the start."""
    return [sum(values[max(0, end - width) : end]) / min(width, end) for end in range(1, len(values) + 1)]
