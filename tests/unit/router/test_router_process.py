"""`python -m moonshard.router` as a process: its run file, its signals, its exit statuses, what it imports."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from moonshard.config import CellConfig
from moonshard.model.config import ModelConfig
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


@contextmanager
def _ready_process(tmp_path: Path, checkpoint: Path) -> Iterator[tuple[subprocess.Popen[str], str, list[RouterLink]]]:
    """A router with one attention worker and one shard, joined through real links."""
    values = {
        "checkpoint": str(checkpoint), "run_dir": str(tmp_path / "run"), "router": {"port": 0}, "num_shards": 1
    }  # fmt: skip
    config = tmp_path / "cell.json"
    config.write_text(CellConfig.build(values).model_dump_json())
    checkpoint_id = ModelConfig.from_dir(checkpoint).checkpoint_id
    with _process(config) as process, ExitStack() as links:
        address = _run_file(process, tmp_path)["address"]
        joins = (pb.Join(role=pb.ROLE_EXPERT, end_expert=384), pb.Join(role=pb.ROLE_ATTENTION))
        shard, attention = (_link(links, address, join, checkpoint_id) for join in joins)
        shard.send(pb.WorkerMessage(ready=pb.Ready(data_address="unix:/x")))
        assert attention.received().get(timeout=LIMIT_S).members.shards[0].data_address == "unix:/x"
        credits = pb.Credits(block_size=16, num_blocks=64, max_num_seqs=4, max_step_tokens=64)
        attention.send(pb.WorkerMessage(ready=pb.Ready(credits=credits)))
        yield process, address, [attention, shard]


def _link(links: ExitStack, address: str, join: pb.Join, checkpoint_id: str) -> RouterLink:
    join.checkpoint_id = checkpoint_id
    link = RouterLink.connect(address, join, LIMIT_S)
    links.callback(link.close)
    return link


def _started(attention: RouterLink, channel: grpc.Channel) -> tuple[Any, str]:
    """A running request and its sequence id."""
    request = inference.GenerateRequest(text="hi", sampling=inference.SamplingParams(max_tokens=2))
    _await_serving(channel, True)
    call = InferenceStub(channel).Generate(request, timeout=LIMIT_S)
    return call, attention.received().get(timeout=LIMIT_S).admit.sequences[0].request_id


def _await_serving(channel: grpc.Channel, wanted: bool) -> None:
    deadline = time.monotonic() + LIMIT_S
    while _is_serving(channel) != wanted:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _is_serving(channel: grpc.Channel) -> bool:
    response = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=LIMIT_S)
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def test_sigterm_drains_a_running_request(tmp_path: Path, checkpoint: Path) -> None:
    with (
        _ready_process(tmp_path, checkpoint) as (process, address, workers),
        grpc.insecure_channel(address) as channel,
    ):
        call, sequence_id = _started(workers[0], channel)
        process.send_signal(signal.SIGTERM)
        _await_serving(channel, False)
        output = pb.SequenceOutput(
            request_id=sequence_id, token_ids=[65, 66], finish_reason=inference.FINISH_REASON_LENGTH
        )
        workers[0].send(pb.WorkerMessage(outputs=pb.SequenceOutputs(outputs=[output])))
        assert [list(response.token_ids) for response in call] == [[65, 66]]
        for worker in workers:
            assert worker.received().get(timeout=LIMIT_S).shutdown.reason == "SIGTERM"
            worker.close()
        status, errors = _ends(process)
        assert status == 0
        assert "Traceback" not in errors, errors


def test_a_second_sigterm_cuts(tmp_path: Path, checkpoint: Path) -> None:
    with (
        _ready_process(tmp_path, checkpoint) as (process, address, workers),
        grpc.insecure_channel(address) as channel,
    ):
        call, _ = _started(workers[0], channel)
        process.send_signal(signal.SIGTERM)
        _await_serving(channel, False)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.RpcError, match="the router ended: SIGTERM"):
            list(call)
        status, errors = _ends(process)  # though no worker leaves when it is told to
        assert status == 0
        assert "Traceback" not in errors, errors


def test_a_port_in_use_is_exit_status_2(tmp_path: Path, checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with _process(_write_config(tmp_path, checkpoint, port=port)) as process:
            status, errors = _ends(process)
    assert status == 2
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
def test_a_wrong_setting_is_exit_status_2(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "cell.json"
    if content is not None:
        path.write_text(content)
    with _process(path) as process:
        status, errors = _ends(process)
    assert status == 2
    assert words in errors
    assert "Traceback" not in errors


def test_the_router_imports_neither_torch_nor_ray_nor_safetensors() -> None:
    blocked = "import sys\nfor name in ('torch', 'ray', 'safetensors', 'numpy'): sys.modules[name] = None\n"
    command = [sys.executable, "-c", blocked + "import moonshard.router.__main__"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=dict(os.environ), check=False)
    assert done.returncode == 0, done.stderr
