"""Pictures of the dashboards, drawn from their own queries over a real Prometheus and a running cell under load.

    python -m tests.board_pictures FOLDER [--seconds 60]          needs prometheus and `pip install matplotlib`

Writes a PNG for each board and an SVG of `moonshard experts`. The load is random prompts to the small demo checkpoint.
"""

import argparse
import io
import json
import random
import re
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console

from moonshard_cluster.client import Client
from moonshard_cluster.demo.trained_model import TRAINED
from moonshard_cluster.load.matrix import from_response
from moonshard_cluster.load.screen import render
from tests.boards import FOLDER, boards, filled_in, panels
from tests.integration.cells import greedy, running_cell
from tests.integration.prometheus_server import running_prometheus

matplotlib.use("Agg")
from matplotlib import pyplot

STREAMS, COLUMNS, STEP_S, LINES_MAX = 6, 3, 2, 12
SHOWN_LAYER = "1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    metrics = {"load_window_s": 2.0, "load_window_rows": 16}
    checkpoint, logs = TRAINED, Path(tempfile.mkdtemp())
    with running_cell(checkpoint, logs, metrics=metrics, model_name="small-demo") as (_, client):
        targets = [worker.metrics_address for worker in client.status().workers]
        rules = sorted((FOLDER.parent / "rules").glob("*.yaml"))
        with running_prometheus(targets, Path(tempfile.mkdtemp()), rules) as address:
            run_load(client, given.seconds)
            for name, board in boards().items():
                draw_board(board, address, given.seconds, given.folder / name.replace(".json", ".png"))
        capture(client, given.folder / "moonshard-experts.svg")


def run_load(client: Client, seconds: float) -> None:
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=stream, args=(client, seed, until)) for seed in range(STREAMS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def stream(client: Client, seed: int, until: float) -> None:
    draw = random.Random(seed)
    while time.monotonic() < until:
        greedy(client, [draw.randrange(1000) for _ in range(draw.randrange(8, 120))], draw.randrange(8, 48))


def ask(address: str, expression: str, seconds: float) -> list[dict[str, Any]]:
    now = time.time()
    values = {"query": filled_in(expression, "15s"), "start": now - seconds, "end": now, "step": STEP_S}
    with urllib.request.urlopen(f"http://{address}/api/v1/query_range?{urllib.parse.urlencode(values)}") as response:
        result: list[dict[str, Any]] = json.load(response)["data"]["result"]
        return result


def draw_board(board: dict[str, Any], address: str, seconds: float, path: Path) -> None:
    shown = list(panels(board))
    rows = -(-len(shown) // COLUMNS)
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(16, 2.7 * rows), squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    for axis, panel in zip(axes.flat, shown, strict=False):
        found = [
            {**series, "name": name_of(series, target["legendFormat"])}
            for target in panel["targets"]
            for series in ask(address, target["expr"].replace("$layer", SHOWN_LAYER), seconds)
        ]
        axis.set_title(panel["title"].replace("$layer", SHOWN_LAYER), fontsize=9, loc="left")
        axis.tick_params(labelsize=7)
        draw_panel(axis, panel["type"], found)
    figure.suptitle(board["title"], x=0.01, ha="left", fontsize=12)
    figure.tight_layout()
    figure.savefig(path, dpi=70)
    pyplot.close(figure)
    sys.stdout.write(f"{path}\n")


def draw_panel(axis: Any, kind: str, found: list[dict[str, Any]]) -> None:
    if kind == "heatmap":
        found.sort(key=lambda series: int(series["metric"]["expert"]))
        axis.imshow([values_of(series) for series in found], aspect="auto", cmap="inferno", origin="lower")
    elif kind in ("bargauge", "table"):
        last = sorted(((series["name"], values_of(series)[-1]) for series in found), key=lambda it: -it[1])[:20]
        axis.barh([name for name, _ in last][::-1], [value for _, value in last][::-1])
        axis.tick_params(axis="y", labelsize=5)
    elif kind == "stat":
        axis.axis("off")
        axis.text(0.5, 0.4, ", ".join(f"{values_of(series)[-1]:.4g}" for series in found), ha="center", fontsize=24)
    else:
        for series in found[:LINES_MAX]:
            start = float(series["values"][0][0])
            axis.plot([float(at) - start for at, _ in series["values"]], values_of(series), label=series["name"])
        if 1 < len(found) <= LINES_MAX:
            axis.legend(fontsize=5)
        axis.set_ylim(bottom=0)


def values_of(series: dict[str, Any]) -> list[float]:
    return [float(value) for _, value in series["values"]]


def name_of(series: dict[str, Any], legend: str) -> str:
    """As Grafana fills a legend in; without one, all labels that tell series apart."""
    if legend != "__auto":
        return re.sub(r"{{(\w+)}}", lambda label: str(series["metric"].get(label[1], "")), legend)
    hidden = ("__name__", "model_name", "job", "instance")
    return " ".join(f"{key} {value}" for key, value in sorted(series["metric"].items()) if key not in hidden) or "all"


def capture(client: Client, path: Path) -> None:
    console = Console(width=120, height=40, record=True, file=io.StringIO(), color_system="truecolor")
    console.print(render(from_response(client.load(60.0)), 120, 40))
    console.save_svg(str(path), title="moonshard experts")


if __name__ == "__main__":
    main()
