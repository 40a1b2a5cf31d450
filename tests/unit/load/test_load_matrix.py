from pathlib import Path

import pytest

from moonshard.errors import ConfigError
from moonshard_cluster.load.matrix import holders, read_recording, to_line
from tests.unit.load.load_samples import ROWS, small_load


def test_balancedness_and_the_hottest_experts() -> None:
    load = small_load()
    assert load.balancedness_L().tolist() == pytest.approx([1.0, 50 / 92])
    assert load.hottest(3) == [(4, 2, 90), (4, 3, 2), (4, 4, 2)]
    assert load.heat_LE()[1, 2] == pytest.approx(7.2)
    assert list(holders(load, 2)) == [0]


def test_a_layer_without_rows_is_balanced() -> None:
    load = small_load([[0] * 8, [1] * 8])
    assert load.balancedness_L().tolist() == [1.0, 1.0]
    assert load.hottest(100)[0] == (4, 0, 1)
    assert len(load.hottest(100)) == 8


def test_a_recording_tells_of_the_time_between_its_ends(tmp_path: Path) -> None:
    earlier, later = small_load(), small_load([[n + 5 for n in row] for row in ROWS], taken_at_s=1060.0)
    path = tmp_path / "load.jsonl"
    path.write_text(f"{to_line(earlier)}\n{to_line(earlier)}\n{to_line(later)}\n")
    found = read_recording(path)
    assert found.rows_LE.tolist() == [[5] * 8] * 2
    assert (found.span_s, found.rows_SL.tolist()) == (60.0, [[20, 20], [20, 20]])


def test_one_line_is_a_recording_too(tmp_path: Path) -> None:
    (tmp_path / "load.jsonl").write_text(to_line(small_load()) + "\n")
    assert read_recording(tmp_path / "load.jsonl").rows_LE.tolist() == ROWS


@pytest.mark.parametrize("text", ["", "{}", "no json", '{"model_name": "x", "rows": [1], "layers": [1], "shards": []}'])
def test_what_is_no_recording_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "load.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=r"load: .*load\.jsonl is"):
        read_recording(tmp_path / "load.jsonl")
