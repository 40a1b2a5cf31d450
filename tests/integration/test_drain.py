"""`moonshard drain` on a real cell under load: nothing fails, nothing changes, and who cannot be spared stays."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from moonshard.v1 import inference_pb2 as pb
from moonshard_cluster.chaos.run import await_ready
from moonshard_cluster.chaos.streams import run_once, run_until
from moonshard_cluster.chaos.verdict import judge
from moonshard_cluster.client import Client
from tests.integration.cells import CommandLineCell, greedy, moonshard

Up = Callable[..., CommandLineCell]
LOAD = 8, 200, 120.0
END_S = 10.0


@contextmanager
def loaded(client: Client, what: str) -> Iterator[None]:
    """Streams run all the while; they end whole and as without any of it."""
    over = threading.Event()
    undisturbed = run_once(client, *LOAD)
    results = run_until(over, client, *LOAD)
    try:
        yield
    finally:
        over.set()
        report = judge(undisturbed, results(), [what], None)
    assert report.passed, report


def test_workers_leave_and_come_back_under_load(up: Up) -> None:
    cell = up("--attention", "2", "--shards", "4", "--replicas", "2")

    def drain(*arguments: str) -> tuple[int, str]:
        done = moonshard("drain", *arguments, "--router", cell.router_address)
        return done.returncode, done.stderr.strip()

    with Client(cell.router_address) as client, loaded(client, "drains"):
        assert drain("shard", "1") == (0, "expert-1 is drained")
        assert drain("shard", "1", "--replica", "1") == (
            1,
            "error: without expert-5 96 of 384 experts have no live copy",
        )
        cell.member("expert-1").kill()  # nobody notices: it is out of service
        assert drain("expert", "5", "--wait")[0] == 0
        assert drain("shard", "1", "--replica", "1", "--undo") == (0, "expert-5 is back in service")
        status, told = drain("attention", "0", "--finish", "0")
        assert (status, told.splitlines()[-1]) == (0, "attention-0 is drained")
        status, told = drain("attention", "1")
        assert (status, told) == (1, "error: no attention worker but attention-1 is ready")
        ended = cell.member("attention-0")
        ended.terminate()
        await_ready(client, 60.0)
        assert drain("attention", "1", "--wait", "--finish", "0.2")[0] == 0
        assert drain("attention", "1", "--undo") == (0, "attention-1 is back in service")


def test_the_router_makes_way_for_its_successor(up: Up) -> None:
    cell = up("--attention", "2", "--shards", "2")
    names = ("attention-0", "attention-1", "expert-0", "expert-1")
    workers = {name: cell.member(name).pid for name in names}
    leaving = cell.member("router").pid
    sampling = pb.SamplingParams(temperature=0, max_tokens=400, ignore_eos=True)
    with Client(cell.router_address) as client:
        answer = client.generate(pb.GenerateRequest(text="a", sampling=sampling), timeout_s=60)
        responses = [next(answer)]
        done: list[tuple[int, str]] = []

        def drain() -> None:
            ended = moonshard("drain", "router", "--router", cell.router_address)
            done.append((ended.returncode, ended.stderr.strip().splitlines()[-1]))

        draining = threading.Thread(target=drain)
        draining.start()
        responses += answer
        draining.join(END_S)
    assert responses[-1].finish.usage.completion_tokens == 400
    assert done == [(0, "router is drained")]
    assert cell.await_member("router", END_S).pid != leaving
    assert {name: cell.member(name).pid for name in names} == workers, "nobody loads its weights again"
    with Client(cell.router_address) as client:
        assert len(greedy(client, [40, 50, 60], 20)) == 20
    cell.interrupt()
    assert cell.finish(END_S) == 0
    assert cell.wait_gone(END_S) == []


def test_a_pod_drains_itself_by_what_its_environment_says(up: Up, tmp_path: Path) -> None:
    """As a preStop hook does: number and router's address from the environment, access from the configuration."""
    cell = up("--attention", "2", "--shards", "2")
    config = tmp_path / "logs" / "cell.json"
    environment = {"RANK": "1", "MOONSHARD_ROUTER": cell.router_address}
    done = moonshard("drain", "attention", "--config", str(config), environment=environment)
    assert (done.returncode, done.stderr.strip()) == (0, "attention-1 is drained")
