"""attention-statefulset.yaml, expert-statefulset.yaml and their Services."""

import pytest

from tests.chart.chart_rendering import Document, container, env, kinds, one, render

GPUS = {"config": {"transport": "all_to_all"}, "attention": {"gpus": 1}, "experts": {"gpus": 1}}


@pytest.mark.parametrize(
    ("name", "program"), [("attention", "moonshard.attention"), ("expert-r0", "moonshard.experts")]
)
def test_workers_run_the_ordinary_programs_as_their_number(name: str, program: str) -> None:
    worker = one(render(), "StatefulSet", name)
    found = container(worker)
    assert found["command"] == ["python", "-m", program]
    assert {"--rank=$(RANK)", "--advertise=$(POD_IP)"} <= set(found["args"])
    sources = env(found)
    assert sources["RANK"] == {"fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}}
    assert sources["POD_IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    assert worker["spec"]["podManagementPolicy"] == "Parallel"


@pytest.mark.parametrize("name", ["attention", "expert"])
def test_workers_find_each_other_before_they_are_ready(name: str) -> None:
    service = one(render(), "Service", name)["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True


def test_the_number_of_an_expert_pod_is_its_shard_and_its_copy() -> None:
    documents = render({"experts": {"shards": 4, "replicas": 3}})
    sets = [one(documents, "StatefulSet", f"expert-r{replica}")["spec"] for replica in range(3)]
    assert [spec["ordinals"]["start"] for spec in sets] == [0, 4, 8]
    assert {spec["replicas"] for spec in sets} == {4}
    assert {spec["serviceName"] for spec in sets} == {"rel-moonshard-expert"}


def test_adding_a_copy_changes_nothing_else_of_the_ones_that_are_there() -> None:
    def first(replicas: int) -> Document:
        found = one(render({"experts": {"replicas": replicas}}), "StatefulSet", "expert-r0")
        del found["spec"]["template"]["metadata"]["annotations"]  # the configuration does change,
        container(found).pop("lifecycle", None)  # and there is a copy to wait for
        return found

    assert first(1) == first(2)


def test_a_shard_with_copies_leaves_when_its_experts_have_another_one() -> None:
    documents = render({"experts": {"replicas": 2, "drainSeconds": 70}})
    for name in ("expert-r0", "expert-r1"):
        worker = one(documents, "StatefulSet", name)
        command = container(worker)["lifecycle"]["preStop"]["exec"]["command"]
        assert command == [
            "moonshard",
            "drain",
            "expert",
            "--wait",
            "--limit=70",
            "--config=/etc/moonshard/cell.json",
            "--router=rel-moonshard-control.serving.svc:50051",
        ]
        assert worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 70


def test_a_shard_without_copies_has_nothing_to_wait_for() -> None:
    assert "lifecycle" not in container(one(render(), "StatefulSet", "expert-r0"))


def test_an_attention_worker_hands_its_sequences_over() -> None:
    worker = one(render({"attention": {"drainSeconds": 20}}), "StatefulSet", "attention")
    command = container(worker)["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:3] == ["moonshard", "drain", "attention"]
    assert {"--finish=20", "--limit=50"} <= set(command)
    assert worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > 50


def test_loading_gets_the_time_that_600_gb_need() -> None:
    probe = container(one(render(), "StatefulSet", "expert-r0"))["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 45 * 60
    assert probe["httpGet"]["path"] == "/readyz"


def test_liveness_asks_for_progress_and_readiness_for_coverage() -> None:
    for name in ("attention", "expert-r0"):
        found = container(one(render(), "StatefulSet", name))
        assert found["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "metrics"}
        assert found["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}


def test_gpus_are_asked_for_in_both_places_and_tolerated() -> None:
    worker = one(render(GPUS), "StatefulSet", "expert-r0")
    resources = container(worker)["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == "1"
    (toleration,) = worker["spec"]["template"]["spec"]["tolerations"]
    assert toleration == {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert "tolerations" not in one(render(), "StatefulSet", "expert-r0")["spec"]["template"]["spec"]


def test_collective_ranks_meet_on_a_port_of_their_own() -> None:
    ports = {p["name"]: p["containerPort"] for p in container(one(render(GPUS), "StatefulSet", "expert-r0"))["ports"]}
    assert ports == {"links": 7070, "metrics": 9090, "collective": 29500}


def test_profiles() -> None:
    def spec(profile: str, **rdma: object) -> Document:
        values = {"network": {"profile": profile, **({"rdma": rdma} if rdma else {})}}
        template = one(render(values), "StatefulSet", "attention")["spec"]["template"]
        template["spec"]["annotations"] = template["metadata"]["annotations"]
        return dict(template["spec"])

    assert "hostNetwork" not in spec("pod")
    host = spec("hostNetwork")
    assert (host["hostNetwork"], host["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")
    rdma = spec("rdma", resource="nvidia.com/nic", count=2, hca="mlx5", annotations={"networks": "rdma-net"})
    (found,) = rdma["containers"]
    assert found["resources"]["limits"]["nvidia.com/nic"] == "2"
    assert env(found)["NCCL_IB_HCA"] == "mlx5"
    assert "NCCL_IB_GID_INDEX" not in env(found)
    assert rdma["annotations"]["networks"] == "rdma-net"


def test_every_knob_of_a_pod_arrives() -> None:
    knobs = {
        "nodeSelector": {"disk": "nvme"},
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 2, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {}}
        ],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "schedulerName": "volcano",
        "resourceClaims": [{"name": "imex", "resourceClaimName": "imex"}],
    }
    extra = {
        "extraEnv": [{"name": "POD_IP", "value": "10.0.0.1"}, {"name": "MORE", "value": "1"}],
        "extraEnvFrom": [{"configMapRef": {"name": "more"}}],
        "extraVolumes": [{"name": "scratch", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
        "initContainers": [{"name": "first", "image": "busybox:1.37"}],
        "podLabels": {"team": "serving"},
        "podAnnotations": {"note": "x"},
        "extraArgs": ["--lifeline"],
    }
    template = one(render({"experts": {**knobs, **extra}}), "StatefulSet", "expert-r0")["spec"]["template"]
    assert {key: template["spec"][key] for key in knobs} == knobs
    (found,) = template["spec"]["containers"]
    assert env(found)["POD_IP"] == "10.0.0.1"
    assert env(found)["MORE"] == "1"
    assert found["envFrom"] == extra["extraEnvFrom"]
    assert found["args"][-1] == "--lifeline"
    assert template["spec"]["initContainers"] == extra["initContainers"]
    assert extra["extraVolumes"][0] in template["spec"]["volumes"]
    assert template["metadata"]["labels"]["team"] == "serving"
    assert template["metadata"]["annotations"]["note"] == "x"


def test_ray_takes_the_workers_place() -> None:
    documents = render({"ray": {"enabled": True}})
    assert kinds(documents, "StatefulSet") == []
    assert len(kinds(render(), "StatefulSet")) == 2
