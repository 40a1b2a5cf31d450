"""A training run in a directory: recipe, vocabulary, newest state, metrics log. Stop it and start it again as you like.

RUN/recipe.json, RUN/vocabulary/, RUN/state.pt (written every `save_steps`, whole or not at all), RUN/metrics.jsonl
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from moonshard.errors import ConfigError
from moonshard.training.balance import balancedness, move_bias
from moonshard.training.batches import make_batch
from moonshard.training.muon import Each, MuonAdamW
from moonshard.training.parameters import Parameters
from moonshard.training.qk_clip import clip_heads
from moonshard.training.recipe import Recipe
from moonshard.training.replicas import Gradients, Replicas
from moonshard.training.tokens import load_encoder

SAVE_STEPS = 50
# Loads are remembered for about fifty steps: a small batch repeats itself too much to be even.
_LOAD_MEMORY = 0.98

Metrics = dict[str, Any]


@dataclass(slots=True)
class State:
    """All that changes in a run. `step` counts finished steps.

    `loads` are rows per expert by layer, those of past steps fading.
    """

    recipe: Recipe
    parameters: Parameters
    optimiser: MuonAdamW
    step: int = 0
    loads: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def fresh(cls, recipe: Recipe) -> Self:
        parameters = Parameters.initialise(recipe.spec.config, recipe.seed)
        return cls(recipe, parameters, MuonAdamW(parameters, recipe.momentum, recipe.weight_decay))

    @classmethod
    def load(cls, path: Path, recipe: Recipe) -> Self:
        """Raises ConfigError when the state is of another recipe; how long it runs may have changed."""
        saved = torch.load(path, weights_only=True)
        if saved["recipe"] | {"num_steps": recipe.num_steps} != recipe.to_json():
            raise ConfigError("recipe", f"{path} belongs to another recipe: {saved['recipe']}")
        state = cls.fresh(recipe)
        with torch.no_grad():
            for name, tensor in state.parameters.named():
                tensor.copy_(saved["weights"][name])
            for layer, bias in state.parameters.gate_biases().items():
                bias.copy_(saved["biases"][layer])
        state.optimiser.load(saved["optimiser"])
        state.step, state.loads = saved["step"], saved["loads"]
        return state

    def save(self, path: Path) -> None:
        fresh = path.with_suffix(".new")
        saved = {
            "recipe": self.recipe.to_json(),
            "step": self.step,
            "loads": self.loads,
            "weights": {name: tensor.detach() for name, tensor in self.parameters.named()},
            "biases": self.parameters.gate_biases(),
            "optimiser": self.optimiser.state(),
        }
        torch.save(saved, fresh)
        fresh.replace(path)


def train(
    folder: Path, recipe: Recipe, num_threads: int, told: Callable[[Metrics], None], until: int | None = None
) -> State:
    """Run to the recipe's end, or until a step, from the newest state if there is one. `told` hears of every step."""
    torch.set_num_threads(1)
    encoder = load_encoder(folder / "vocabulary")
    newest = folder / "state.pt"
    state = State.load(newest, recipe) if newest.exists() else State.fresh(recipe)
    last = min(recipe.num_steps, until or recipe.num_steps)
    with Replicas(recipe.spec.config, state.parameters, num_threads) as replicas, _log(folder, state.step) as log:
        while state.step < last:
            started = time.monotonic()
            batch = make_batch(encoder, recipe.rows, recipe.row_length, recipe.seed, state.step)
            metrics = train_step(state, replicas.gradients(batch, recipe.is_quantised(state.step)), replicas.each)
            metrics |= {"tokens": batch.tokens_BS.numel(), "seconds": round(time.monotonic() - started, 3)}
            log.write(json.dumps(metrics) + "\n")
            told(metrics)
            if state.step % SAVE_STEPS == 0 or state.step == last:
                log.flush()
                state.save(newest)
    return state


def train_step(state: State, seen: Gradients, each: Each = map) -> Metrics:
    """Move all weights and biases by gradients that lie ready; what the log says of the step."""
    recipe, parameters = state.recipe, state.parameters
    factor = recipe.lr_factor(state.step)
    norm = torch.nn.utils.clip_grad_norm_([tensor for _, tensor in parameters.others()], recipe.clip_norm)
    state.optimiser.step(recipe.muon_lr * factor, recipe.adam_lr * factor, each)
    clipped = 0
    if recipe.qk_threshold is not None:
        for index, layer in enumerate(parameters.decoder.layers):
            clipped += clip_heads(recipe.spec.config, layer, seen.max_logits[index], recipe.qk_threshold)
    if recipe.bias_rate is not None:
        for index, bias in parameters.gate_biases().items():
            move_bias(bias, seen.counts[index], recipe.bias_rate)
    for index, counts in seen.counts.items():
        state.loads[index] = state.loads.get(index, torch.zeros(len(counts))) * _LOAD_MEMORY + counts
    state.step += 1
    return {
        "step": state.step,
        "loss": seen.loss,
        "lr_factor": factor,
        "grad_norm": float(norm),
        "max_logit": max(float(logits.max()) for logits in seen.max_logits.values()),
        "clipped_heads": clipped,
        "balancedness": {index: balancedness(load) for index, load in state.loads.items()},
    }


def _log(folder: Path, step: int) -> Any:
    """The metrics log, cut back to the steps that the state has seen."""
    path = folder / "metrics.jsonl"
    lines = path.read_text().splitlines()[:step] if path.exists() else []
    path.write_text("".join(f"{line}\n" for line in lines))
    return path.open("a")
