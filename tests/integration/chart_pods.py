"""The chart's pods as processes of this machine: what the manifests say, with a loopback address for every pod.

A pod gets an address of its own in 127.0.0.0/8, so that ports stay what the manifests say. Mount paths become folders,
names of Services the address of the pod they select, and "0.0.0.0" the pod's address.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Document = dict[str, Any]
POLL_S = 0.1
INDEX = "metadata.labels['apps.kubernetes.io/pod-index']"


@dataclass
class Pod:
    """One replica of a workload: its template, number and address. is_extra: an autoscaler may start it, later."""

    name: str
    ip: str
    number: int
    template: Document
    folder: Path
    mounts: Mapping[str, Path] = field(default_factory=dict)
    process: "subprocess.Popen[bytes] | None" = None
    is_extra: bool = False
    hook_status: int | None = None

    @property
    def container(self) -> Document:
        (found,) = self.template["spec"]["containers"]
        return dict(found)

    def port(self, name: str) -> int:
        (found,) = [p["containerPort"] for p in self.container["ports"] if p["name"] == name]
        return int(found)

    def probe(self, name: str) -> int:
        """HTTP status of a probe, 0 when nobody answers."""
        asked = self.container[name]["httpGet"]
        url = f"http://{self.ip}:{self.port(asked['port'])}{asked['path']}"
        try:
            with urllib.request.urlopen(url, timeout=self.container[name].get("timeoutSeconds", 1)) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def log(self) -> str:
        with suppress(OSError):
            return (self.folder / "log").read_text(errors="replace")[-3000:]
        return ""


# Two charts may run in one process, several processes on one machine: none shares an address with another.
_SUBNETS = itertools.count(10)


class Pods:
    """All pods of a rendered chart. weights: the folder that the manifests' weights volume stands for."""

    def __init__(self, documents: list[Document], weights: Path, folder: Path) -> None:
        self._documents = documents
        self._weights = weights
        self._folder = folder
        self.pods = list(self._make())
        self._names = dict(self._resolve())

    def of(self, component: str) -> list[Pod]:
        label = "app.kubernetes.io/component"
        return [pod for pod in self.pods if pod.template["metadata"]["labels"][label] == component]

    def start(self, pod: Pod) -> None:
        """Run the container's command with its arguments and environment."""
        self._fill_mounts(pod)
        found = pod.container
        pod.process = self._run(pod, [*found["command"], *found.get("args", [])])

    def _run(self, pod: Pod, words: list[str]) -> "subprocess.Popen[bytes]":
        variables = {entry["name"]: self._value(pod, entry) for entry in pod.container.get("env", [])}
        program, *arguments = (self._expand(pod, word, variables) for word in words)
        command = {"python": [sys.executable], "moonshard": [sys.executable, "-m", "moonshard_cluster.cli"]}[program]
        environment = {**os.environ, **variables, "OMP_NUM_THREADS": "1"}
        with (pod.folder / "log").open("ab") as log:
            return subprocess.Popen(
                [*command, *arguments], env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )

    def stop(self, pod: Pod) -> int:
        """As the kubelet does: the preStop hook, SIGTERM, and SIGKILL after the grace period. The exit status."""
        assert pod.process is not None
        deadline = time.monotonic() + pod.template["spec"]["terminationGracePeriodSeconds"]
        hook = pod.container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep"])
        if hook[0] != "sleep":  # for endpoints to forget the pod, of which there are none here
            self._hooked(pod, self._run(pod, hook), deadline)
        pod.process.terminate()
        try:
            return pod.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            pod.process.kill()
            return pod.process.wait(10)

    def _hooked(self, pod: Pod, hook: "subprocess.Popen[bytes]", deadline: float) -> None:
        """Wait for a hook; its exit status is kept, which Kubernetes would make an event."""
        try:
            pod.hook_status = hook.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            hook.kill()
            pod.hook_status = hook.wait(10)

    def await_probe(self, pod: Pod, name: str, limit_s: float) -> None:
        """Until the probe passes by its own definition; a pod that ends before fails the test with its last words."""
        assert pod.process is not None
        deadline = time.monotonic() + limit_s
        while not 200 <= pod.probe(name) < 400:
            assert pod.process.poll() is None, f"{pod.name} exited {pod.process.returncode}:\n{pod.log()}"
            assert time.monotonic() < deadline, (
                f"{name} of {pod.name} did not pass in {limit_s:g} s:\n{pod.log()}{self._ended()}"
            )
            time.sleep(POLL_S)

    def _ended(self) -> str:
        """The last words of the pods that do not run: why another one waits."""
        ended = [pod for pod in self.pods if pod.process is not None and pod.process.poll() is not None]
        return "".join(f"\n{pod.name} exited {pod.process.returncode}:\n{pod.log()}" for pod in ended if pod.process)

    def address(self, service: str, port: int) -> str:
        """host:port of a Service's port, as a client inside the cluster would use it."""
        (found,) = [d for d in self._documents if d["kind"] == "Service" and d["metadata"]["name"].endswith(service)]
        assert port in {entry["port"] for entry in found["spec"]["ports"]}
        return f"{self._selected(found).ip}:{self._target(found, port)}"

    def kill(self) -> None:
        running = [pod.process for pod in self.pods if pod.process is not None]
        for process in running:
            process.kill()
        for process in running:
            process.wait(10)

    def _make(self) -> Iterator[Pod]:
        for document in self._documents:
            if document["kind"] not in ("Deployment", "StatefulSet"):
                continue
            subnet = next(_SUBNETS)
            spec = document["spec"]
            first = spec.get("ordinals", {}).get("start", 0)
            fewest, most = self._replicas(document)
            for number in range(first, first + most):
                name = f"{document['metadata']['name']}-{number}"
                folder = self._folder / name
                folder.mkdir(parents=True)
                ip = f"127.{100 + os.getpid() % 100}.{subnet}.{number + 1}"
                yield Pod(name, ip, number, spec["template"], folder, is_extra=number >= first + fewest)

    def _replicas(self, workload: Document) -> tuple[int, int]:
        """(at first, at most): where an autoscaler owns the number, what it says."""
        if (fixed := workload["spec"].get("replicas")) is not None:
            return fixed, fixed
        name = workload["metadata"]["name"]
        (spec,) = [
            d["spec"] for d in self._documents if d.get("spec", {}).get("scaleTargetRef", {}).get("name") == name
        ]
        return spec.get("minReplicaCount") or spec["minReplicas"], spec.get("maxReplicaCount") or spec["maxReplicas"]

    def _resolve(self) -> Iterator[tuple[str, str]]:
        for document in self._documents:
            if document["kind"] == "Service":
                name = f"{document['metadata']['name']}.{document['metadata']['namespace']}.svc"
                yield name, self._selected(document).ip

    def _selected(self, service: Document) -> Pod:
        selector = service["spec"]["selector"].items()
        return next(pod for pod in self.pods if selector <= pod.template["metadata"]["labels"].items())

    def _target(self, service: Document, port: int) -> int:
        (entry,) = [entry for entry in service["spec"]["ports"] if entry["port"] == port]
        return self._selected(service).port(entry["targetPort"])

    def _fill_mounts(self, pod: Pod) -> None:
        volumes = {volume["name"]: volume for volume in pod.template["spec"]["volumes"]}
        mounts = {}
        for mount in pod.container["volumeMounts"]:
            folder = self._weights if mount["name"] == "weights" else pod.folder / mount["name"]
            folder.mkdir(exist_ok=True)
            mounts[mount["mountPath"]] = folder
            self._fill(pod, volumes[mount["name"]], folder, {**mounts, "/weights": self._weights})
        pod.mounts = mounts

    def _fill(self, pod: Pod, volume: Document, folder: Path, mounts: Mapping[str, Path]) -> None:
        if "configMap" not in volume:
            return
        (found,) = [
            d["data"]
            for d in self._documents
            if d["kind"] == "ConfigMap" and d["metadata"]["name"] == volume["configMap"]["name"]
        ]
        pod.mounts = {**mounts, "/run/moonshard": pod.folder / "run"}
        for name, text in found.items():
            config = json.loads(text)
            (folder / name).write_text(self._localise(pod, json.dumps(config)))

    def _value(self, pod: Pod, entry: Document) -> str:
        if "value" in entry:
            return str(entry["value"])
        path = entry["valueFrom"]["fieldRef"]["fieldPath"]
        return {INDEX: str(pod.number), "status.podIP": pod.ip}[path]

    def _expand(self, pod: Pod, word: str, variables: Mapping[str, str]) -> str:
        return self._localise(pod, re.sub(r"\$\((\w+)\)", lambda match: variables[match[1]], word))

    def _localise(self, pod: Pod, text: str) -> str:
        text = text.replace("0.0.0.0", pod.ip)
        for name, ip in self._names.items():
            text = text.replace(name, ip)
        for path, folder in sorted(pod.mounts.items(), reverse=True):
            text = re.sub(rf'(?<=["=]){re.escape(path)}(?=[/"]|$)', str(folder), text)
        return text


@contextmanager
def running_pods(documents: list[Document], weights: Path, folder: Path) -> Iterator[Pods]:
    """Every pod started at once, as StatefulSets with parallel management and Deployments do; none that are extra."""
    pods = Pods(documents, weights, folder)
    try:
        for pod in pods.pods:
            if not pod.is_extra:
                pods.start(pod)
        yield pods
    finally:
        pods.kill()
