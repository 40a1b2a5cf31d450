"""Whole runs of a tiny model: resumed, exported, asked."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from moonshard.errors import ConfigError
from moonshard.model.reference import Reference
from moonshard.training.evaluate import ask, perplexity, summarise
from moonshard.training.export import export
from moonshard.training.generate import answers
from moonshard.training.model import Model
from moonshard.training.pairs import VARIANTS, draw_pairs, run_pairs
from moonshard.training.recipe import Recipe
from moonshard.training.run import State, train


@pytest.fixture(scope="module")
def finished(recipe: Recipe, vocabulary: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(vocabulary, folder / "vocabulary")
    train(folder, recipe, num_threads=2, told=lambda _: None)
    return folder


@pytest.fixture(scope="module")
def exported(recipe: Recipe, finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "checkpoint"
    export(folder, recipe, State.load(finished / "state.pt", recipe).parameters, finished / "vocabulary")
    return folder


def log(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def test_the_loss_falls(finished: Path) -> None:
    losses = [line["loss"] for line in log(finished)]
    assert losses[-1] < losses[0] - 0.5


def test_a_resumed_run_has_the_losses_of_an_unbroken_one(
    recipe: Recipe, finished: Path, vocabulary: Path, tmp_path: Path
) -> None:
    shutil.copytree(vocabulary, tmp_path / "vocabulary")
    for until in (2, 4, None):
        train(tmp_path, recipe, num_threads=2, told=lambda _: None, until=until)
        # What was logged after the newest state is logged again.
        with (tmp_path / "metrics.jsonl").open("a") as file:
            file.write('{"step": 99}\n')
    assert log(tmp_path)[: recipe.num_steps] == log(finished)


def test_a_state_of_another_recipe_is_refused(recipe: Recipe, finished: Path) -> None:
    with pytest.raises(ConfigError, match="another recipe"):
        State.load(finished / "state.pt", dataclasses.replace(recipe, momentum=0.9))
    longer = dataclasses.replace(recipe, num_steps=12)
    assert State.load(finished / "state.pt", longer).step == recipe.num_steps


def test_the_served_checkpoint_has_the_trained_logits(recipe: Recipe, finished: Path, exported: Path) -> None:
    parameters = State.load(finished / "state.pt", recipe).parameters
    with torch.no_grad():
        for name, tensor in parameters.named():
            if "experts" not in name:
                tensor.copy_(tensor.bfloat16())
    reference = Reference.load(exported)
    model = Model(recipe.spec.config, parameters)
    model.routed.quantised = True
    tokens = torch.randint(0, 2048, (1, 30), generator=torch.Generator().manual_seed(9))
    found = model.logits(tokens)
    torch.testing.assert_close(found, reference.logits(tokens[0].tolist()), rtol=0, atol=2e-4)


def test_the_export_does_not_overwrite(recipe: Recipe, finished: Path, exported: Path) -> None:
    with pytest.raises(ConfigError, match="exists"):
        export(exported, recipe, State.fresh(recipe).parameters, finished / "vocabulary")


def test_answers_in_a_batch_are_those_alone(exported: Path) -> None:
    reference = Reference.load(exported)
    prompts = [[5, 9, 300], [7, 8], [1000, 2, 3, 4, 5, 6, 1700]]
    found = answers(reference.decoder, prompts, 8, ends=())
    assert found == [reference.greedy(prompt, 8) for prompt in prompts]
    end = found[0][3]
    assert answers(reference.decoder, prompts[:1], 8, ends=(end,))[0] == found[0][: found[0].index(end)]


def test_evaluation_asks_and_counts(exported: Path) -> None:
    found = ask(exported, 6, seed=0, told=lambda done, total: None)
    assert all(answered.dialogue.is_held_out for answered in found)
    shares = dict(summarise(found))
    assert shares["reasoning closed"].asked == 6
    assert sum(share.asked for name, share in shares.items() if name.startswith("right: in ")) == 6


def test_perplexity_is_that_of_a_model_that_has_learnt_something(exported: Path) -> None:
    assert 1 < perplexity(exported, num_batches=1, rows=1, length=400, seed=0) < 2048


def test_variants_run_side_by_side_and_are_drawn(recipe: Recipe, vocabulary: Path, tmp_path: Path) -> None:
    short = dataclasses.replace(recipe, num_steps=1, rows=1)
    lines: list[str] = []
    run_pairs(tmp_path, vocabulary, short, threads=1, told=lines.append)
    draw_pairs(tmp_path, tmp_path)
    assert [line.split(":")[0] for line in lines] == list(VARIANTS)
    assert {path.name for path in tmp_path.glob("*.png")} == {"qk_clip.png", "bias_rule.png"}
