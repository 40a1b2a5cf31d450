"""The cache of demo checkpoints: where it is, and that it survives failures and races."""

import subprocess
import sys
from pathlib import Path

import pytest

from moonshard.errors import CheckpointError
from moonshard_cluster.demo import cache, checkpoint
from moonshard_cluster.demo.cache import default_demo_dir, ensure_demo
from moonshard_cluster.demo.checkpoint import write_demo
from moonshard_cluster.demo.spec import DemoSpec

TINY = DemoSpec.tiny()


@pytest.fixture(autouse=True)
def cache_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_place(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_demo_dir(TINY).parent == cache_home / "moonshard" / "demo"
    assert default_demo_dir().name.startswith("small-")
    monkeypatch.setenv("HOME", "/home/somebody")
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert default_demo_dir(TINY).parent == Path("/home/somebody/.cache/moonshard/demo")


def test_every_difference_has_its_own_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    specs = [TINY, DemoSpec.tiny(seed=1), DemoSpec.tiny(hidden_size=96), TINY.chaotic(), DemoSpec.small()]
    places = {default_demo_dir(spec) for spec in specs}
    monkeypatch.setattr(cache, "FORMAT_VERSION", cache.FORMAT_VERSION + 1)
    places.add(default_demo_dir(TINY))
    template = tmp_path / "template"
    template.write_text("another")
    monkeypatch.setattr(cache, "TEMPLATE", template)
    places.add(default_demo_dir(TINY))
    assert len(places) == len(specs) + 2


def test_made_once() -> None:
    path = ensure_demo(TINY)
    made = (path / "config.json").stat().st_mtime_ns
    assert ensure_demo(TINY) == path
    assert (path / "config.json").stat().st_mtime_ns == made
    assert names(path.parent) == [path.name]


def test_the_slower_of_two_takes_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    path = default_demo_dir(TINY)

    def overtake(written: int, total: int) -> None:
        if not path.exists():
            write_demo(path, TINY)
            (path / "first").touch()

    assert ensure_demo(TINY, overtake) == path
    assert (path / "first").exists()
    assert names(path.parent) == [path.name]


def test_several_processes_at_once(cache_home: Path) -> None:
    program = (
        "from moonshard_cluster.demo.cache import ensure_demo\n"
        "from moonshard_cluster.demo.spec import DemoSpec\n"
        "assert (ensure_demo(DemoSpec.tiny()) / 'model.safetensors.index.json').is_file()\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    assert names(cache_home / "moonshard" / "demo") == [default_demo_dir(TINY).name]


def test_a_failure_is_reported_and_leaves_nothing(cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_free_bytes", lambda folder: 0)
    with pytest.raises(CheckpointError, match="0 are free"):
        ensure_demo(TINY)
    assert names(cache_home / "moonshard" / "demo") == []
