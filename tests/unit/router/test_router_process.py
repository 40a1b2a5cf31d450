"""`python -m moonshard.router` as a process: its run file, its signals, its exit statuses, what it imports."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from moonshard.config import CellConfig
from moonshard.rpc.worker_stream import RouterLink
from moonshard.v1 import control_pb2 as pb
from moonshard.v1 import inference_pb2 as inference
from moonshard.v1.inference_pb2_grpc import InferenceStub
from moonshard_cluster.demo.spec import DemoSpec
from moonshard_cluster.demo.vocabulary import write_vocabulary

LIMIT_S = 20.0


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that a router reads of a checkpoint: no weights."""
    folder = tmp_path_factory.mktemp("checkpoint") / "demo"
    folder.mkdir()
    spec = DemoSpec.tiny()
    (folder / "config.json").write_text(json.dumps(spec.config_json()))
    write_vocabulary(folder, spec.vocab_size)
    return folder


def _write_config(run_dir: Path, checkpoint: Path, **router: Any) -> Path:
    path = run_dir / "cell.json"
    values = {"checkpoint": str(checkpoint), "run_dir": str(run_dir / "run"), "router": {"port": 0} | router}
    path.write_text(CellConfig.build(values).model_dump_json())
    return path


@contextmanager
def _process(config: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "moonshard.router", "--config", str(config), *flags]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _run_file(process: subprocess.Popen[str], run_dir: Path) -> dict[str, Any]:
    path = run_dir / "run" / "router.json"
    deadline = time.monotonic() + LIMIT_S
    while not path.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def _ends(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=LIMIT_S)
    return process.returncode, errors


def test_it_says_where_it_listens_and_ends_on_sigterm(tmp_path: Path, checkpoint: Path) -> None:
    with _process(_write_config(tmp_path, checkpoint)) as process:
        found = _run_file(process, tmp_path)
        assert found["pid"] == process.pid
        with grpc.insecure_channel(found["address"]) as channel:
            model = InferenceStub(channel).GetModel(inference.GetModelRequest(), timeout=LIMIT_S)
        assert (model.name, model.num_experts) == ("demo", 384)
        join = pb.Join(role=pb.ROLE_ATTENTION, rank=0, checkpoint_id="none of ours")
        with pytest.raises(Exception, match=r"the router refuses this worker: checkpoint_id"):
            RouterLink.connect(found["address"], join, timeout_s=LIMIT_S)
        process.send_signal(signal.SIGTERM)
        status, errors = _ends(process)
        assert status == 0, errors
        assert "Traceback" not in errors
        assert not (tmp_path / "run" / "router.json").exists()


def test_it_ends_with_its_launcher_and_leaves_ctrl_c_to_it(tmp_path: Path, checkpoint: Path) -> None:
    with _process(_write_config(tmp_path, checkpoint), "--lifeline") as process:
        _run_file(process, tmp_path)
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
        status, errors = _ends(process)
        assert status == 0, errors
        assert "the launcher is gone" in errors


def test_a_port_in_use_is_exit_status_1(tmp_path: Path, checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with _process(_write_config(tmp_path, checkpoint, port=port)) as process:
            status, errors = _ends(process)
    assert status == 1
    assert f"router.port: cannot listen on 127.0.0.1:{port}; is the port in use?" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "config: cannot read"),
        ('{"checkpoint": "x", "router": {"prot": 1}}', "router.prot: unknown key; did you mean 'port'?"),
        ('{"checkpoint": "/nowhere"}', "/nowhere"),
    ],
)
def test_a_wrong_setting_is_exit_status_1(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "cell.json"
    if content is not None:
        path.write_text(content)
    with _process(path) as process:
        status, errors = _ends(process)
    assert status == 1
    assert words in errors
    assert "Traceback" not in errors


def test_the_router_imports_neither_torch_nor_ray_nor_safetensors() -> None:
    blocked = "import sys\nfor name in ('torch', 'ray', 'safetensors', 'numpy'): sys.modules[name] = None\n"
    command = [sys.executable, "-c", blocked + "import moonshard.router.__main__"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
