"""A killed worker is started again while requests wait; what ends, ends whole, says why, and leaves nothing behind."""

import re
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from moonshard.errors import Unavailable
from moonshard.v1 import inference_pb2 as pb
from moonshard_cluster.client import Client
from tests.integration.cells import CommandLineCell, greedy

END_S = 10.0
NEW_TOKENS = 300


def traces(cell: CommandLineCell) -> list[str]:
    """What it may leave on the machine beside processes: run directories and shared memory. Others run cells too."""
    pids = {str(process.pid) for process in cell.members}
    shared = [path for path in Path("/dev/shm").iterdir() if pids & set(re.findall(r"\d+", path.name))]
    return [str(path) for path in (*cell.temporary.glob("moonshard-*"), *shared)]


@pytest.mark.parametrize(
    ("victim", "shape"),
    [
        ("router", ["--no-restart"]),
        ("attention-0", ["--no-restart"]),
        ("expert-7", ["--no-restart"]),
        ("expert-3", ["--no-restart", "--transport", "all_to_all"]),
    ],
)
def test_a_killed_process_that_is_not_started_again_ends_the_cell(
    victim: str, shape: list[str], up: Callable[..., CommandLineCell]
) -> None:
    cell = up(*shape)
    process = cell.member(victim)
    process.send_signal(signal.SIGKILL)
    assert cell.finish(END_S) == 1
    assert cell.wait_gone(END_S) == []
    assert re.search(rf"error: {victim} \(pid {process.pid}\) was killed by SIGKILL", cell.output), cell.output
    assert "stopping the cell" in cell.output
    assert traces(cell) == []


@pytest.mark.parametrize(
    ("victim", "shape"),
    [
        ("expert-2", ["--attention", "2"]),
        ("attention-0", ["--attention", "2"]),
        pytest.param("attention-0", [], marks=pytest.mark.slow),
        ("expert-0", ["--attention", "2", "--transport", "all_to_all"]),
        pytest.param("attention-1", ["--attention", "2", "--transport", "all_to_all"], marks=pytest.mark.slow),
    ],
    ids=["shard", "attention worker", "the only attention worker", "rank 0 of a group", "another rank of a group"],
)
def test_requests_outlive_a_worker(victim: str, shape: list[str], up: Callable[..., CommandLineCell]) -> None:
    cell = up(*shape)
    prompts = [[40 + number, 50, 60] for number in range(4)]
    num_tokens = NEW_TOKENS // 5 if "all_to_all" in shape else NEW_TOKENS  # a step takes ten times as long on gloo
    with Client(cell.router_address) as client, ThreadPoolExecutor(len(prompts)) as pool:
        undisturbed = list(pool.map(lambda prompt: greedy(client, prompt, num_tokens), prompts))
        answers = [pool.submit(greedy, client, prompt, num_tokens) for prompt in prompts]
        killed = cell.member(victim)
        killed.kill()
        assert [answer.result() for answer in answers] == undisturbed
        assert cell.await_member(victim, END_S).pid != killed.pid
        assert greedy(client, prompts[0], num_tokens) == undisturbed[0]
    assert re.search(rf"{victim} \(pid {killed.pid}\) was killed by SIGKILL; starting it again", cell.output)
    cell.interrupt()
    assert cell.finish(END_S) == 0
    assert cell.wait_gone(END_S) == []


def test_workers_outlive_the_router(up: Callable[..., CommandLineCell]) -> None:
    cell = up("--attention", "2")
    workers = {name: cell.member(name).pid for name in ("attention-0", "attention-1", "expert-0", "expert-7")}
    with Client(cell.router_address) as client:
        undisturbed = greedy(client, [40, 50, 60], NEW_TOKENS)
        sampling = pb.SamplingParams(temperature=0, max_tokens=4000, ignore_eos=True)
        answer = client.generate(pb.GenerateRequest(text="a", sampling=sampling), timeout_s=60)
        next(answer)
        killed = cell.member("router")
        killed.kill()
        with pytest.raises(Unavailable):
            list(answer)
    assert cell.await_member("router", END_S).pid != killed.pid
    assert {name: cell.member(name).pid for name in workers} == workers, "nobody loads its weights again"
    with Client(cell.router_address) as client:
        assert greedy(client, [40, 50, 60], NEW_TOKENS) == undisturbed
    cell.interrupt()
    assert cell.finish(END_S) == 0
    assert cell.wait_gone(END_S) == []


def test_a_killed_launcher_takes_the_cell_with_it(up: Callable[..., CommandLineCell]) -> None:
    cell = up()
    cell.process.kill()
    assert cell.wait_gone(END_S) == []
    assert traces(cell) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_drains_and_leaves_nothing(number: signal.Signals, up: Callable[..., CommandLineCell]) -> None:
    cell = up()
    with Client(cell.router_address) as client:
        sampling = pb.SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)
        answer = client.generate(pb.GenerateRequest(text="a", sampling=sampling), timeout_s=60)
        first = next(answer)
        cell.process.send_signal(number)
        responses = [first, *answer]
    assert responses[-1].finish.usage.completion_tokens == 300
    assert cell.finish(END_S) == 0
    assert cell.wait_gone(END_S) == []
    assert "draining" in cell.output
    assert traces(cell) == []


def test_new_requests_are_refused_while_draining(up: Callable[..., CommandLineCell]) -> None:
    cell = up()
    with Client(cell.router_address) as client:
        sampling = pb.SamplingParams(temperature=0, max_tokens=2000, ignore_eos=True)
        answer = client.generate(pb.GenerateRequest(text="a", sampling=sampling), timeout_s=60)
        next(answer)
        cell.interrupt()
        refused = None
        for response in answer:
            # The order takes a moment to reach the router; the running answer goes on meanwhile.
            if refused is None and response.token_ids:
                try:
                    list(client.generate(pb.GenerateRequest(text="b", sampling=pb.SamplingParams(max_tokens=1)), 5))
                except Unavailable as error:
                    refused = error
    assert refused is not None
    assert "draining" in str(refused)
    assert cell.finish(END_S) == 0


def test_a_port_in_use_is_said_before_anything_starts(tmp_path: Path, tiny_checkpoint: Path) -> None:
    server = grpc.server(__import__("concurrent.futures").futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with pytest.raises(AssertionError, match=rf"router\.port.*{port}"):
            CommandLineCell(str(tiny_checkpoint), "--log-dir", str(tmp_path), "--port", str(port))
    finally:
        server.stop(None).wait(5)
