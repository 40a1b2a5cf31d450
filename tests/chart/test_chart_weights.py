"""weights.yaml and the volumes of the pods that read the checkpoint."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chart.chart_rendering import Document, cell_config, env, kinds, one, refusal, render

IMAGE = {"weights": {"uri": "image://registry.example.com/kimi:int4"}}
HF = {"weights": {"uri": "hf://moonshotai/Kimi-K2.5"}}


def volume(documents: list[Document], workload: tuple[str, str] = ("StatefulSet", "expert-r0")) -> Document:
    spec = one(documents, *workload)["spec"]["template"]["spec"]
    (found,) = [volume for volume in spec["volumes"] if volume["name"] == "weights"]
    return dict(found)


@pytest.mark.parametrize(
    ("uri", "source", "path"),
    [
        ("pvc://claim/models/K2.5", {"persistentVolumeClaim": {"claimName": "claim"}}, "/weights/models/K2.5"),
        ("pvc://claim", {"persistentVolumeClaim": {"claimName": "claim"}}, "/weights"),
        ("hostpath:///nvme/K2.5", {"hostPath": {"path": "/nvme/K2.5", "type": "Directory"}}, "/weights"),
        (
            "hf://moonshotai/Kimi-K2.5@v1",
            {"persistentVolumeClaim": {"claimName": "rel-moonshard-weights"}},
            "/weights/moonshotai/Kimi-K2.5/v1",
        ),
        (
            IMAGE["weights"]["uri"],
            {"image": {"reference": "registry.example.com/kimi:int4", "pullPolicy": "IfNotPresent"}},
            "/weights",
        ),
    ],
)
def test_where_weights_come_from(uri: str, source: Document, path: str) -> None:
    documents = render({"weights": {"uri": uri}})
    for workload in (("Deployment", "router"), ("StatefulSet", "attention"), ("StatefulSet", "expert-r0")):
        assert volume(documents, workload) == {"name": "weights", **source}
    assert cell_config(documents)["checkpoint"] == path


def test_image_volumes_wait_for_the_kubernetes_that_has_them() -> None:
    assert "image volumes need Kubernetes 1.36, this is v1.35.0" in refusal(IMAGE, kube="1.35.0")


def test_pods_mount_weights_read_only() -> None:
    for workload in kinds(render(), "StatefulSet"):
        (found,) = workload["spec"]["template"]["spec"]["containers"]
        assert {"name": "weights", "mountPath": "/weights", "readOnly": True} in found["volumeMounts"]


def test_nothing_is_downloaded_or_checked_unless_asked() -> None:
    documents = render()
    assert kinds(documents, "Job") == []
    assert kinds(documents, "PersistentVolumeClaim") == []
    assert "initContainers" not in one(documents, "StatefulSet", "expert-r0")["spec"]["template"]["spec"]


def test_a_download_is_a_job_that_the_pods_wait_for() -> None:
    documents = render(HF)
    (claim,) = kinds(documents, "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    (job,) = kinds(documents, "Job")
    (download,) = job["spec"]["template"]["spec"]["containers"]
    assert env(download)["CHECKPOINT"] == cell_config(documents)["checkpoint"]
    assert download["args"][0].splitlines()[-1] == 'touch "$CHECKPOINT/.moonshard-complete"'
    for workload in (one(documents, "Deployment", "router"), *kinds(documents, "StatefulSet")):
        (waiting,) = workload["spec"]["template"]["spec"]["initContainers"]
        assert waiting["args"][1] == "/weights/moonshotai/Kimi-K2.5/main/.moonshard-complete"


def test_another_revision_is_another_job() -> None:
    names = {kinds(render({"weights": {"uri": f"hf://a/b@{r}"}}), "Job")[0]["metadata"]["name"] for r in ("1", "2")}
    assert len(names) == 2


def test_the_token_is_a_reference_and_an_existing_claim_is_not_made() -> None:
    download = {"existingClaim": "models", "token": {"existingSecret": "hf", "key": "t"}}
    documents = render({"weights": {"uri": "hf://a/b", "download": download}})
    assert kinds(documents, "PersistentVolumeClaim") == []
    (job,) = kinds(documents, "Job")
    assert env(job["spec"]["template"]["spec"]["containers"][0])["HF_TOKEN"] == {
        "secretKeyRef": {"name": "hf", "key": "t"}
    }


def test_checksums_are_compared_by_a_job_that_cannot_write() -> None:
    (job,) = kinds(render({"weights": {"checksums": "sums"}}), "Job")
    (check,) = job["spec"]["template"]["spec"]["containers"]
    assert "sha256sum --check --strict /checksums/SHA256SUMS" in check["args"][0]
    assert "touch" not in check["args"][0]
    assert {"name": "weights", "mountPath": "/weights", "readOnly": True} in check["volumeMounts"]


def test_waiting_ends_with_the_mark_or_with_the_limit(tmp_path: Path) -> None:
    workload = one(render(HF), "StatefulSet", "expert-r0")
    (waiting,) = workload["spec"]["template"]["spec"]["initContainers"]
    program, _, _ = waiting["args"]

    def wait(minutes: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-c",
            program.replace("time.sleep(5)", "time.sleep(0.01)"),
            str(tmp_path / "mark"),
            minutes,
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)

    late = wait("0.001")
    assert late.returncode == 1
    assert "did not appear within 0.06 s" in late.stderr
    (tmp_path / "mark").touch()
    assert wait("1").returncode == 0
