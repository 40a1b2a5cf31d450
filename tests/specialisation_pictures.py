"""Which experts of the demo work for which language and task: counted by a running cell while it answers.

    python -m tests.specialisation_pictures FOLDER [--questions 24]

Starts the default demo, asks it held-out questions of one language after the other, then of one task after the other,
and reads the shards' counts in between (what `moonshard experts --record` writes). by_language.png and by_task.png
have a row for each and a column for each expert, sorted by who uses it most; colours as in `moonshard experts`.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from moonshard.training.data.corpus import Encoder, sample
from moonshard.training.data.dialogue import Dialogue
from moonshard.training.tokens import load_encoder
from moonshard.v1 import inference_pb2 as pb
from moonshard_cluster.client import Client
from moonshard_cluster.demo.trained_model import TRAINED
from moonshard_cluster.load.colours import rgb_of
from moonshard_cluster.load.matrix import ExpertLoad, from_response
from tests.integration.cells import OPEN, running_cell

STREAMS, MAX_TOKENS, ANSWER_S, COUNTED_S = 8, 160, 120.0, 20.0
LANGUAGES = {"en": "English", "pt": "Portuguese", "de": "German", "fr": "French", "ru": "Russian", "id": "Indonesian"}
LANGUAGES |= {"zh": "Chinese"}
TASKS = ("talk", "plus", "minus", "compare", "json", "tool call", "tool answer")
LEFT, TOP, CELL_X, CELL_Y, GAP = 110, 54, 3, 20, 40
INK, PAPER = (30, 30, 30), (255, 255, 255)

Rows = NDArray[np.int64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--questions", type=int, default=24, help="of each language and task")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    encoder = load_encoder(TRAINED)
    of_language = {name: drawn(lambda d, c=code: d.language == c, given.questions) for code, name in LANGUAGES.items()}  # type: ignore[misc]
    of_task = {task: drawn(lambda d, t=task: d.task == t, given.questions) for task in TASKS}  # type: ignore[misc]
    with running_cell(TRAINED, Path(tempfile.mkdtemp()), metrics=OPEN, model_name="demo") as (_, client):
        for title, file, questions in (
            ("language", "by_language.png", of_language),
            ("task", "by_task.png", of_task),
        ):
            loads = dict(counted(client, encoder, questions))
            draw(loads, f"Rows of each expert by {title}, by the mean of the row; columns sorted", given.folder / file)
            sys.stdout.write("".join(f"{line}\n" for line in told(loads, title)))


def drawn(wanted: Callable[[Dialogue], bool], count: int) -> list[Dialogue]:
    """Held-out questions of one kind."""
    rng = random.Random(11)
    found: list[Dialogue] = []
    while len(found) < count:
        dialogue = sample(rng, held_out=True)
        if wanted(dialogue):
            found.append(dialogue)
    return found


def counted(
    client: Client, encoder: Encoder, questions: Mapping[str, list[Dialogue]]
) -> Iterator[tuple[str, ExpertLoad]]:
    """What the experts served for each kind of question, nothing else running."""
    answered(client, [1, 2, 3])  # shards tell of their experts with their first rows
    before = settled(client)
    for name, dialogues in questions.items():
        rng = random.Random(12)
        prompts = [encoder.prompt(dialogue, rng) for dialogue in dialogues]
        with ThreadPoolExecutor(STREAMS) as pool:
            list(pool.map(lambda prompt: answered(client, prompt), prompts))
        after = settled(client)
        yield name, after.minus(before)
        before = after


def answered(client: Client, prompt: list[int]) -> None:
    sampling = pb.SamplingParams(temperature=0, max_tokens=MAX_TOKENS)
    list(client.generate(pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=sampling), ANSWER_S))


def settled(client: Client) -> ExpertLoad:
    """The totals, once two readings agree: shards tell of their counts a moment later."""
    deadline = time.monotonic() + COUNTED_S
    last = from_response(client.load(0))
    while True:
        time.sleep(1.0)
        found = from_response(client.load(0))
        if found.total == last.total > 0 or time.monotonic() > deadline:
            return found
        last = found


def draw(loads: Mapping[str, ExpertLoad], title: str, path: Path) -> None:
    """A block for each layer, in it a row for each kind of question."""
    (first, *_), names = loads.values(), list(loads)
    num_experts = first.rows_LE.shape[1]
    block = len(names) * CELL_Y + GAP
    picture = Image.new("RGB", (LEFT + num_experts * CELL_X + 20, TOP + block * len(first.layers)), PAPER)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    pen.text((LEFT, 12), title, INK, font)
    for at, layer in enumerate(first.layers):
        heat_NE = heat(loads, at)
        top = TOP + at * block
        cells = np.array([[rgb_of(value) for value in row] for row in in_order(heat_NE).tolist()], np.uint8)
        size = num_experts * CELL_X, len(names) * CELL_Y
        picture.paste(Image.fromarray(cells).resize(size, Image.Resampling.NEAREST), (LEFT, top))
        pen.text((LEFT, top - 18), f"layer {layer}", INK, font)
        for row, name in enumerate(names):
            pen.text((LEFT - 8, top + row * CELL_Y + 2), name, INK, font, anchor="ra")
    picture.quantize(64).save(path, "PNG", optimize=True)


def heat(loads: Mapping[str, ExpertLoad], at: int) -> NDArray[np.float64]:
    """Rows by their mean, so that kinds of questions weigh the same however much was said."""
    rows_NE = np.stack([load.rows_LE[at] for load in loads.values()]).astype(np.float64)
    heat_NE: NDArray[np.float64] = rows_NE / np.maximum(rows_NE.mean(axis=1, keepdims=True), 1e-12)
    return heat_NE


def in_order(heat_NE: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns by the row that uses the expert most, the most one-sided first."""
    share_E = heat_NE.max(axis=0) / np.maximum(heat_NE.sum(axis=0), 1e-12)
    return heat_NE[:, np.lexsort((-share_E, heat_NE.argmax(axis=0)))]


def told(loads: Mapping[str, ExpertLoad], title: str) -> Iterator[str]:
    """How one-sided the experts are: the largest share that one kind has in an expert's rows, weighted by them."""
    layers = next(iter(loads.values())).layers
    for at, layer in enumerate(layers):
        heat_NE = heat(loads, at)
        one_sided = heat_NE.max(axis=0).sum() / heat_NE.sum()
        alike = 1 / len(heat_NE)
        yield f"layer {layer}: an expert's own {title} has {one_sided:.0%} of its rows ({alike:.0%} if all were alike)"


if __name__ == "__main__":
    main()
