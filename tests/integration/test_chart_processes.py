"""The chart proven against the programs: the laptop value set's containers run here as the manifests say."""

import json
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from moonshard_cluster.client import Client
from tests.chart.chart_rendering import CHART, render
from tests.integration.cells import greedy
from tests.integration.chart_pods import Pod, Pods, running_pods

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8 as loopback")
READY_S, STREAMS = 60.0, 4


@pytest.fixture(scope="module")
def pods(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pods]:
    small = {"experts": {"shards": 4}}
    documents = render(small, file=CHART / "ci" / "laptop-values.yaml")
    with running_pods(documents, tiny_checkpoint, tmp_path_factory.mktemp("pods")) as found:
        yield found


def test_every_probe_passes_by_its_own_definition(pods: Pods) -> None:
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        for pod in pods.pods:
            pods.await_probe(pod, name, READY_S)


def test_the_cell_answers_through_the_routers_service(pods: Pods) -> None:
    for pod in pods.pods:
        pods.await_probe(pod, "readinessProbe", READY_S)
    with Client(pods.address("-router", 50051)) as client:
        found = client.status()
        assert found.ready
        # What the workers tell others is their pods' addresses, at the ports of the manifests.
        told = {worker.metrics_address for worker in found.workers}
        assert told >= {f"{pod.ip}:9090" for role in ("attention", "expert") for pod in pods.of(role)}
        assert len(greedy(client, [1, 2, 3], max_tokens=4)) == 4


def test_the_first_answer_comes_as_the_notes_say(pods: Pods) -> None:
    for pod in pods.pods:
        pods.await_probe(pod, "readinessProbe", READY_S)
    question = {"model": "demo", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
    request = urllib.request.Request(
        f"http://{pods.address('-gateway', 8000)}/v1/chat/completions",
        data=json.dumps(question).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=READY_S) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 4


def test_a_deleted_shard_comes_back_and_only_then_the_cell_is_ready(pods: Pods) -> None:
    for pod in pods.pods:
        pods.await_probe(pod, "readinessProbe", READY_S)
    (router,), shard = pods.of("router"), pods.of("expert")[1]
    assert pods.stop(shard) == 0
    deadline = time.monotonic() + READY_S
    while router.probe("readinessProbe") == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert router.probe("livenessProbe") == 200
    pods.start(shard)
    for pod in (shard, router):
        pods.await_probe(pod, "readinessProbe", READY_S)
    with Client(pods.address("-router", 50051)) as client:
        assert len(greedy(client, [1, 2, 3], max_tokens=4)) == 4


@pytest.mark.slow
def test_an_autoscaled_cell_serves_with_the_fewest_workers_and_takes_more(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    scaled = {"autoscaling": {"enabled": True, "minReplicas": 1, "maxReplicas": 2}}
    small = {"gateway": {"enabled": False}, "experts": {"shards": 1}, "attention": scaled}
    documents = render(small, file=CHART / "ci" / "laptop-values.yaml")
    with running_pods(documents, tiny_checkpoint, tmp_path) as pods:
        (router,), (first, extra) = pods.of("router"), pods.of("attention")
        for pod in (first, router):
            pods.await_probe(pod, "readinessProbe", READY_S)
        with Client(pods.address("-router", 50051)) as client:
            expected = greedy(client, [1, 2, 3], 8)
            pods.start(extra)
            pods.await_probe(extra, "readinessProbe", READY_S)
            assert len(client.status().workers) == 4
            # Scaled down again: the highest number goes first, here the lowest is shown to be no more than another.
            assert pods.stop(first) == 0
            assert greedy(client, [1, 2, 3], 8) == expected


@pytest.mark.slow
def test_workers_are_rolled_under_load_and_no_request_fails(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As a changed image tag rolls StatefulSets: each from its highest number on, the next one when the last is ready.

    Both copies' sets roll at once; it is the pods' preStop hooks that keep every expert covered.
    """
    small = {"gateway": {"enabled": False}, "experts": {"shards": 2, "replicas": 2}, "attention": {"replicas": 2}}
    documents = render(small, file=CHART / "ci" / "laptop-values.yaml")
    with running_pods(documents, tiny_checkpoint, tmp_path) as pods, ThreadPoolExecutor(STREAMS + 2) as pool:
        for pod in pods.pods:
            pods.await_probe(pod, "readinessProbe", READY_S)
        experts, attention, (router,) = pods.of("expert"), pods.of("attention"), pods.of("router")
        with Client(pods.address("-router", 50051)) as client:
            expected = greedy(client, [1, 2, 3], 24)
            rolled = threading.Event()
            streams = [pool.submit(_ask_until, rolled, client) for _ in range(STREAMS)]
            try:
                sets = [pool.submit(_roll, pods, experts[:2]), pool.submit(_roll, pods, experts[2:])]
                for rolling in sets:
                    rolling.result(4 * READY_S)
                _roll(pods, attention)
            finally:
                rolled.set()
            answers = [answer for stream in streams for answer in stream.result(READY_S)]
        assert len(answers) > STREAMS
        assert answers == [expected] * len(answers)
        assert {pod.name: pod.hook_status for pod in (*experts, *attention)} == dict.fromkeys(
            (pod.name for pod in (*experts, *attention)), 0
        )
        workers = [pod.process for pod in (*experts, *attention)]
        assert pods.stop(router) == 0
        pods.start(router)
        pods.await_probe(router, "readinessProbe", READY_S)
        assert [process.poll() for process in workers if process] == [None] * 6, "nobody loads its weights again"
        with Client(pods.address("-router", 50051)) as client:
            assert greedy(client, [1, 2, 3], 24) == expected


def _roll(pods: Pods, workers: list[Pod]) -> None:
    for pod in reversed(workers):
        pods.stop(pod)
        pods.start(pod)
        pods.await_probe(pod, "readinessProbe", READY_S)


def _ask_until(rolled: threading.Event, client: Client) -> list[list[int]]:
    answers = []
    while not rolled.is_set():
        answers.append(greedy(client, [1, 2, 3], 24))
    return answers
