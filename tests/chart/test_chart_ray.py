"""raycluster.yaml."""

from tests.chart.chart_rendering import Document, cell_config, env, kinds, one, render, selects

RAY = {"ray": {"enabled": True, "nodes": 5}}


def groups(documents: list[Document]) -> tuple[Document, Document]:
    spec = one(documents, "RayCluster", "ray")["spec"]
    (workers,) = spec["workerGroupSpecs"]
    return spec["headGroupSpec"], workers


def test_nothing_of_ray_unless_asked() -> None:
    assert kinds(render(), "RayCluster") == []


def test_ray_takes_the_place_of_router_and_workers() -> None:
    documents = render(RAY)
    assert kinds(documents, "StatefulSet") == []
    assert [d["metadata"]["name"] for d in kinds(documents, "Deployment")] == ["rel-moonshard-gateway"]


def test_the_head_is_the_router_that_the_services_select() -> None:
    documents = render(RAY)
    head, _ = groups(documents)
    for name in ("router", "control"):
        assert selects(one(documents, "Service", name)["spec"]["selector"], head["template"])
    (container,) = head["template"]["spec"]["containers"]
    assert 'moonshard up --ray "$POD_IP:6379" --config /etc/moonshard/cell.json' in container["args"][0]
    assert env(container)["POD_IP"] == {"fieldRef": {"fieldPath": "status.podIP"}}


def test_the_operator_leaves_the_command_to_us() -> None:
    (cluster,) = kinds(render(RAY), "RayCluster")
    assert cluster["metadata"]["annotations"]["ray.io/overwrite-container-cmd"] == "true"
    for group in groups([cluster]):
        (container,) = group["template"]["spec"]["containers"]
        assert "$KUBERAY_GEN_RAY_START_CMD" in container["args"][0]


def test_ray_places_nothing_on_the_head_and_counts_the_workers_cpus() -> None:
    head, workers = groups(render(RAY))
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert workers["rayStartParams"]["num-cpus"] == "16"
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 5


def test_workers_that_share_a_pod_share_no_port() -> None:
    config = cell_config(render(RAY))
    assert config["network"]["link_port"] == 0
    assert config["metrics"] == {"host": "0.0.0.0", "base_port": 9090, "worker_port": 0}
