"""Short runs of a small shape that differ in one rule each: what QK-Clip, the bias rule and rounding are good for."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from moonshard.training.evaluate import perplexity
from moonshard.training.export import export
from moonshard.training.plots import draw, read_log
from moonshard.training.recipe import Recipe
from moonshard.training.run import train
from moonshard_cluster.demo.spec import DemoSpec

VARIANTS: dict[str, dict[str, float | None]] = {
    "all rules": {},
    "no QK-Clip": {"qk_threshold": None},
    "no bias rule": {"bias_rate": None},
    "no rounding": {"quantised_fraction": 0.0},
}
# Low enough for logits to reach it in a short run.
_THRESHOLD = 14.0
_BATCHES = 4


def small_recipe(num_steps: int, vocab_size: int) -> Recipe:
    return Recipe(
        spec=DemoSpec.tiny(vocab_size=vocab_size),
        num_steps=num_steps,
        rows=6,
        warmup_steps=min(20, num_steps),
        qk_threshold=_THRESHOLD,
    )


def run_pairs(folder: Path, vocabulary: Path, recipe: Recipe, threads: int, told: Callable[[str], None]) -> None:
    """Train every variant under `folder`, or go on with what is there; `told` hears what they show, line by line."""
    for name, changes in VARIANTS.items():
        run = folder / name.replace(" ", "-")
        if not run.exists():
            shutil.copytree(vocabulary, run / "vocabulary")
        variant = dataclasses.replace(recipe, **changes)  # type: ignore[arg-type]
        state = train(run, variant, threads, lambda _: None)
        losses = [line["loss"] for line in read_log(run / "metrics.jsonl")[-20:]]
        found = {}
        for kind, is_int4 in (("INT4", True), ("BF16", False)):
            shutil.rmtree(run / kind, ignore_errors=True)
            export(run / kind, variant, state.parameters, run / "vocabulary", int4_experts=is_int4)
            found[kind] = perplexity(run / kind, _BATCHES, recipe.rows, recipe.row_length, seed=1)
        told(
            f"{name}: loss {sum(losses) / len(losses):.4f}, held-out perplexity {found['INT4']:.4f} in INT4, "
            f"{found['BF16']:.4f} in BF16 ({found['INT4'] / found['BF16'] - 1:+.2%})"
        )


def draw_pairs(folder: Path, pictures: Path) -> None:
    """qk_clip.png and bias_rule.png from the variants' logs."""
    pictures.mkdir(parents=True, exist_ok=True)
    logs = {name: read_log(folder / name.replace(" ", "-") / "metrics.jsonl") for name in VARIANTS}
    label = f"largest attention logit (threshold {_THRESHOLD:.0f})"
    draw(pictures / "qk_clip.png", label, {n: [m["max_logit"] for m in logs[n]] for n in ("all rules", "no QK-Clip")})
    balance = {n: [min(m["balancedness"].values()) for m in logs[n]] for n in ("all rules", "no bias rule")}
    draw(pictures / "bias_rule.png", "mean load / largest load, worst layer", balance)
