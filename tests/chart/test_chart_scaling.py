"""autoscaling.yaml and pdb.yaml."""

import pytest

from tests.chart.chart_rendering import cell_config, kinds, one, render


def scaled(component: str, kind: str) -> dict[str, object]:
    return {component: {"autoscaling": {"enabled": True, "kind": kind, "minReplicas": 2, "maxReplicas": 5}}}


def test_nothing_scales_by_itself_unless_asked() -> None:
    documents = render()
    assert kinds(documents, "ScaledObject") + kinds(documents, "HorizontalPodAutoscaler") == []


@pytest.mark.parametrize("kind", ["keda", "hpa"])
@pytest.mark.parametrize(("component", "target"), [("attention", "StatefulSet"), ("gateway", "Deployment")])
def test_an_autoscaler_owns_the_number_of_replicas(component: str, target: str, kind: str) -> None:
    documents = render(scaled(component, kind))
    scaler = one(documents, "ScaledObject" if kind == "keda" else "HorizontalPodAutoscaler", component)
    workload = one(documents, target, component)
    assert "replicas" not in workload["spec"]
    reference = scaler["spec"]["scaleTargetRef"]
    assert (reference["kind"], reference["name"]) == (target, workload["metadata"]["name"])


def test_a_cell_expects_no_more_attention_workers_than_the_autoscaler_may_start() -> None:
    config = cell_config(render(scaled("attention", "keda")))
    assert (config["num_attention"], config["min_attention"]) == (5, 2)
    fixed = cell_config(render({"attention": {"replicas": 3}}))
    assert fixed["num_attention"] == 3
    assert "min_attention" not in fixed


def test_the_signal_is_the_queue_of_this_cell() -> None:
    scaler = one(render(scaled("attention", "keda")), "ScaledObject", "attention")
    query = scaler["spec"]["triggers"][0]["metadata"]["query"]
    assert query == 'sum(moonshard_requests_waiting{namespace="serving", model_name="kimi-k2.5"})'


def test_single_shards_never_scale() -> None:
    for kind in ("keda", "hpa"):
        for document in render({**scaled("attention", kind), **scaled("gateway", kind)}):
            reference = document.get("spec", {}).get("scaleTargetRef", {"name": ""})
            assert "expert" not in reference["name"]
            assert "router" not in reference["name"]


def test_one_shard_at_a_time_whichever_copy_it_belongs_to() -> None:
    documents = render({"experts": {"replicas": 2}})
    budget = one(documents, "PodDisruptionBudget", "expert")["spec"]
    assert budget["maxUnavailable"] == 1
    selector = budget["selector"]["matchLabels"]
    for replica in range(2):
        labels = one(documents, "StatefulSet", f"expert-r{replica}")["spec"]["template"]["metadata"]["labels"]
        assert selector.items() <= labels.items()


def test_no_budget_blocks_the_drain_of_a_node() -> None:
    for budget in kinds(render(), "PodDisruptionBudget"):
        assert budget["spec"]["maxUnavailable"] == 1
        assert "minAvailable" not in budget["spec"]


def test_budgets_can_be_left_out() -> None:
    assert kinds(render({"disruptionBudgets": {"enabled": False}}), "PodDisruptionBudget") == []
