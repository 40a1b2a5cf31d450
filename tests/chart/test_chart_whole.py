"""Every value set, both Helms: what must hold of all that the chart renders."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from moonshard.config import CellConfig
from tests.chart.chart_rendering import (
    CHART,
    CI_VALUES,
    NEWEST,
    Document,
    cell_config,
    containers,
    kinds,
    pod_templates,
    render,
    run,
    selects,
)
from tests.chart.custom_resources import problems

EVERY_SET = pytest.mark.parametrize("file", [None, *CI_VALUES], ids=lambda f: f.stem if f else "defaults")
OLDEST = "1.29.0"


@pytest.mark.parametrize("major", [3, 4])
@EVERY_SET
def test_helm_finds_nothing_to_complain_about(file: Path | None, major: int) -> None:
    arguments = ["--values", str(file)] if file else []
    done = run(major, "lint", "--strict", str(CHART), "--kube-version", NEWEST, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr


@EVERY_SET
def test_both_majors_render_the_same(file: Path | None) -> None:
    assert render(file=file, major=3) == render(file=file, major=4)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@EVERY_SET
def test_every_object_is_valid(file: Path | None, version: str) -> None:
    if version == OLDEST and file and "image://" in file.read_text():
        pytest.skip("image volumes are refused before 1.36, which a test of their own asserts")
    for document in render(file=file, kube=version):
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.SchemaNotFoundError:
            assert problems(document) == [], document["metadata"]["name"]


@EVERY_SET
def test_names_are_unique_and_short_enough(file: Path | None) -> None:
    documents = render(file=file)
    names = Counter((d["kind"], d["metadata"]["name"]) for d in documents)
    assert max(names.values()) == 1, names
    # A StatefulSet's pods append a number, and their name is a label.
    assert all(len(name) <= 57 for _, name in names)


@EVERY_SET
def test_every_object_of_the_chart_carries_the_recommended_labels(file: Path | None) -> None:
    for document in render(file=file):
        if document["metadata"]["name"] == "note":
            continue  # the user's own, from extraObjects
        labels = document["metadata"]["labels"]
        for key in ("name", "instance", "version", "managed-by", "component", "part-of"):
            assert labels[f"app.kubernetes.io/{key}"]
        assert labels["helm.sh/chart"].startswith("moonshard-")


@EVERY_SET
def test_lists_keyed_by_name_have_no_name_twice(file: Path | None) -> None:
    """Helm 4 applies on the server, which refuses them."""
    for _, template in pod_templates(render(file=file)):
        _unique([c["name"] for c in containers(template)])
        _unique([v["name"] for v in template["spec"].get("volumes", [])])
        for container in containers(template):
            _unique([e["name"] for e in container.get("env", [])])
            _unique([p["name"] for p in container.get("ports", [])])
            _unique([p["containerPort"] for p in container.get("ports", [])])
            _unique([m["mountPath"] for m in container.get("volumeMounts", [])])


@EVERY_SET
def test_quantities_are_strings(file: Path | None) -> None:
    for _, template in pod_templates(render(file=file)):
        for container in containers(template):
            for kind in ("requests", "limits"):
                for name, quantity in container["resources"].get(kind, {}).items():
                    assert isinstance(quantity, str), f"{name}: {quantity!r}"


@EVERY_SET
def test_images_are_pinned(file: Path | None) -> None:
    for _, template in pod_templates(render(file=file)):
        for container in containers(template):
            assert re.search(r"(:[\w][\w.-]*|@sha256:[0-9a-f]{64})$", container["image"])
            assert not container["image"].endswith(":latest")


@EVERY_SET
def test_pods_satisfy_the_restricted_security_level(file: Path | None) -> None:
    for workload, template in pod_templates(render(file=file)):
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(template):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"]["drop"] == ["ALL"]
            added = context["capabilities"].get("add", [])
            is_rdma = file is not None and file.stem.startswith("rdma")
            is_worker = workload["kind"] == "StatefulSet"
            assert added == (["IPC_LOCK"] if is_rdma and is_worker else [])


@EVERY_SET
def test_probes_and_services_point_at_ports_that_exist(file: Path | None) -> None:
    documents = render(file=file)
    for _, template in pod_templates(documents):
        for container in containers(template):
            ports = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe in container:
                    assert container[probe]["httpGet"]["port"] in ports
    for service in kinds(documents, "Service"):
        (template,) = _matching(documents, service["spec"]["selector"])
        ports = {port["name"] for container in containers(template) for port in container.get("ports", [])}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


@EVERY_SET
def test_selectors_match_their_pods_and_hold_no_version(file: Path | None) -> None:
    for workload, template in pod_templates(render(file=file)):
        if workload["kind"] not in ("Deployment", "StatefulSet"):
            continue
        selector = workload["spec"]["selector"]["matchLabels"]
        assert selects(selector, template)
        assert not {"app.kubernetes.io/version", "helm.sh/chart"} & set(selector)
        others = [t for w, t in pod_templates(render(file=file)) if w is not workload and selects(selector, t)]
        assert others == []


@EVERY_SET
def test_volumes_that_are_mounted_exist_and_are_all_used(file: Path | None) -> None:
    for _, template in pod_templates(render(file=file)):
        volumes = {volume["name"] for volume in template["spec"].get("volumes", [])}
        mounted = {m["name"] for container in containers(template) for m in container.get("volumeMounts", [])}
        assert volumes == mounted


@EVERY_SET
def test_the_programs_accept_the_configuration(file: Path | None) -> None:
    CellConfig.build(cell_config(render(file=file)))


def _matching(documents: list[Document], selector: dict[str, str]) -> list[Document]:
    found = [template for _, template in pod_templates(documents) if selects(selector, template)]
    # Copies of the shards are a StatefulSet each, alike but for their numbers.
    return found[:1]


def _unique(names: list[Any]) -> None:
    assert len(names) == len(set(names)), names
