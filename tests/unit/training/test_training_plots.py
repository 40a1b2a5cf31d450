"""The pictures are drawn from a log as it is written."""

import json
from pathlib import Path

from moonshard.training.plots import draw_run, running_mean


def test_a_log_becomes_three_pictures(tmp_path: Path) -> None:
    lines = [{"step": n, "loss": 1 / n, "max_logit": 2.0 * n, "balancedness": {"1": 0.5, "2": 0.25}} for n in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    draw_run(tmp_path / "metrics.jsonl", tmp_path / "pictures")
    found = {path.name: path.read_bytes()[:4] for path in (tmp_path / "pictures").iterdir()}
    assert found == dict.fromkeys(("loss.png", "logits.png", "balance.png"), b"\x89PNG")


def test_a_running_mean_starts_with_what_there_is() -> None:
    assert running_mean([4, 2, 6, 0], 2) == [4, 3, 4, 3]
