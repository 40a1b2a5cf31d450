"""`python -m moonshard.training`: vocabulary, train, export, evaluate, plot. Each is a step of its own."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated

# Before torch is loaded: one thread per operator, `--threads` of our own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from moonshard.training import evaluate as evaluation
from moonshard.training import tokens
from moonshard.training.export import export as write_checkpoint
from moonshard.training.recipe import Recipe
from moonshard.training.run import Metrics, State
from moonshard.training.run import train as run_training

app = typer.Typer(add_completion=False, help="Train the demo model from nothing.", no_args_is_help=True)
console = Console(stderr=True)
Run = Annotated[Path, typer.Argument(help="directory of the run")]
Checkpoint = Annotated[Path, typer.Argument(help="checkpoint directory")]


@app.command()
def train(
    run: Run,
    steps: Annotated[int | None, typer.Option("--steps", help=f"in all [{Recipe.num_steps}]")] = None,
    seed: Annotated[int, typer.Option("--seed", help="of a new run")] = 0,
    threads: Annotated[int, typer.Option("--threads", help="rows are divided among them")] = 2,
) -> None:
    """Begin a run, or go on with one."""
    recipe = _recipe(run, Recipe(seed=seed))
    if steps is not None:
        recipe = dataclasses.replace(recipe, num_steps=steps)
    if not (run / "vocabulary").exists():
        console.print("training the vocabulary")
        tokens.write_vocabulary(run / "vocabulary", recipe.spec.vocab_size)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=recipe.num_steps)
        run_training(run, recipe, threads, lambda m: bar.update(task, completed=m["step"], description=_line(m)))


@app.command()
def export(
    run: Run,
    folder: Annotated[Path, typer.Argument(help="where to write; must not exist")],
    plain: Annotated[bool, typer.Option("--plain", help="BF16 experts, to compare with")] = False,
) -> None:
    """Write the newest state as a checkpoint in the published format."""
    recipe = _recipe(run)
    state = State.load(run / "state.pt", recipe)
    write_checkpoint(folder, recipe, state.parameters, run / "vocabulary", int4_experts=not plain)
    console.print(f"wrote {folder}, step {state.step}", highlight=False)


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    num_dialogues: Annotated[int, typer.Option("--dialogues")] = 800,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    wrong: Annotated[int, typer.Option("--show-wrong", help="so many wrong answers")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="in wordings that no training text has")] = False,
    against: Annotated[Path | None, typer.Option("--against", help="another checkpoint's perplexity")] = None,
) -> None:
    """Put held-out questions to a checkpoint, greedily and without constraints."""
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("asking", total=num_dialogues)
        found = evaluation.ask(checkpoint, num_dialogues, seed, lambda done, _: bar.update(task, completed=done), fresh)
    table = Table("held-out questions", "share")
    for name, share in evaluation.summarise(found):
        table.add_row(name, str(share))
    for path in filter(None, (checkpoint, against)):
        table.add_row(f"perplexity of {path.name}", f"{evaluation.perplexity(path, 6, 10, 384, seed):.4f}")
    Console().print(table)
    for answered in evaluation.wrong(found)[:wrong]:
        Console().print(answered.dialogue.key, "->", answered.text, markup=False, highlight=False)


@app.command()
def plot(run: Run, folder: Annotated[Path, typer.Argument(help="where the pictures go")]) -> None:
    """Draw a run's curves."""
    from moonshard.training.plots import draw_run

    draw_run(run / "metrics.jsonl", folder)


@app.command()
def pairs(
    run: Annotated[Path, typer.Argument(help="directory of a run, for its vocabulary; pairs/ in it is filled")],
    steps: Annotated[int, typer.Option("--steps")] = 300,
    threads: Annotated[int, typer.Option("--threads")] = 2,
) -> None:
    """Train a small shape with and without each rule, and draw what it changes."""
    from moonshard.training.pairs import draw_pairs, run_pairs, small_recipe

    recipe = small_recipe(steps, _recipe(run).spec.vocab_size)
    run_pairs(run / "pairs", run / "vocabulary", recipe, threads, lambda line: console.print(line, highlight=False))
    draw_pairs(run / "pairs", run / "pairs")


def _recipe(run: Path, new: Recipe | None = None) -> Recipe:
    """The run's recipe, written when the run is new."""
    path = run / "recipe.json"
    if new is not None and not path.exists():
        run.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(new.to_json(), indent=2) + "\n")
    return Recipe.from_json(json.loads(path.read_text()))


def _line(m: Metrics) -> str:
    return f"loss {m['loss']:.3f}, largest logit {m['max_logit']:.0f}, balance {min(m['balancedness'].values()):.2f}"


if __name__ == "__main__":
    app()
