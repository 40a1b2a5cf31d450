"""The chart as Helm renders it, for the tests: parsed documents, found by kind and name."""

import functools
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
CHART = REPOSITORY / "helm" / "moonshard"
TOOLS = REPOSITORY / ".tools"
CI_VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
RELEASE, NAMESPACE = "rel", "serving"
# The newest that the schemas know; image volumes are on by default there.
NEWEST = "1.37.0"
LIMIT_S = 60

Document = dict[str, Any]


class _Loader(yaml.CSafeLoader):
    """Refuses a key given twice, which YAML parsers otherwise pass over."""


def _mapping(loader: yaml.CSafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]  # type: ignore[no-untyped-call]
    twice = {key for key in keys if keys.count(key) > 1}
    assert not twice, f"{node.start_mark}: given twice: {twice}"
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def helm(major: int) -> Path:
    """The program, or skip: tests/fetch_helm.py installs it."""
    path = TOOLS / f"helm{major}"
    if not path.exists():
        pytest.skip(f"Helm {major} is not here: run tests/fetch_helm.py")
    return path


def run(major: int, *arguments: str, values: Mapping[str, Any] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(helm(major)), *arguments, *(["--values", "-"] if values is not None else [])],
        input=json.dumps(values) if values is not None else None,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def render(values: Mapping[str, Any] | None = None, **options: Any) -> list[Document]:
    """All documents for these values over the chart's defaults. options: file, major, kube."""
    return list(_render(json.dumps(values or {}), options.get("file"), options.get("major", 4), options.get("kube")))


@functools.cache
def _render(values: str, file: Path | None, major: int, kube: str | None) -> tuple[Document, ...]:
    arguments = ["template", RELEASE, str(CHART), "--namespace", NAMESPACE, "--kube-version", kube or NEWEST]
    arguments += ["--values", str(file)] if file else []
    done = run(major, *arguments, values=json.loads(values))
    assert done.returncode == 0, done.stderr
    return tuple(document for document in yaml.load_all(done.stdout, _Loader) if document)


def refusal(values: Mapping[str, Any], major: int = 4, kube: str = NEWEST) -> str:
    """What Helm says when it refuses these values."""
    done = run(major, "template", RELEASE, str(CHART), "--kube-version", kube, values=values)
    assert done.returncode != 0, "Helm rendered what it should refuse"
    return done.stderr


def kinds(documents: list[Document], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


def one(documents: list[Document], kind: str, name: str) -> Document:
    """The document of that kind whose name is the release's full name and `-name`."""
    found = [d for d in kinds(documents, kind) if d["metadata"]["name"] == f"{RELEASE}-moonshard-{name}"]
    assert len(found) == 1, f"{kind} {name}: {[d['metadata']['name'] for d in kinds(documents, kind)]}"
    return found[0]


def pod_templates(documents: list[Document]) -> Iterator[tuple[Document, Document]]:
    """(workload, its pod template); a bare pod is its own template."""
    for document in documents:
        if document["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield document, document["spec"]["template"]
        elif document["kind"] == "RayCluster":
            for group in (document["spec"]["headGroupSpec"], *document["spec"]["workerGroupSpecs"]):
                yield document, group["template"]
        elif document["kind"] == "Pod":
            yield document, document


def containers(template: Document) -> list[Document]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def container(workload: Document) -> Document:
    """The one container of a workload."""
    found: list[Document] = workload["spec"]["template"]["spec"]["containers"]
    assert len(found) == 1
    return found[0]


def selects(selector: Mapping[str, str], template: Document) -> bool:
    labels = template["metadata"].get("labels", {})
    return all(labels.get(key) == value for key, value in selector.items())


def cell_config(documents: list[Document]) -> dict[str, Any]:
    (found,) = [d["data"]["cell.json"] for d in kinds(documents, "ConfigMap") if "cell.json" in d["data"]]
    config: dict[str, Any] = json.loads(found)
    return config


def env(found: Document) -> dict[str, Any]:
    """Name -> value, or the source it comes from."""
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in found.get("env", [])}
