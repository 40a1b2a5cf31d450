"""networkpolicy.yaml: every port is reached by those who need it, and no other."""

from collections.abc import Iterator

import pytest

from tests.chart.chart_rendering import Document, containers, kinds, pod_templates, render, selects

ON = {"networkPolicy": {"enabled": True}}
COLLECTIVE = {**ON, "config": {"transport": "all_to_all"}}


def policies(documents: list[Document]) -> dict[str, Document]:
    return {
        p["metadata"]["labels"]["app.kubernetes.io/component"]: p["spec"] for p in kinds(documents, "NetworkPolicy")
    }


def ports(rules: list[Document]) -> set[int | tuple[int, int]]:
    return set(_ports(rules))


def _ports(rules: list[Document]) -> Iterator[int | tuple[int, int]]:
    for rule in rules:
        for port in rule["ports"]:
            yield (port["port"], port["endPort"]) if "endPort" in port else port["port"]


def test_none_unless_asked() -> None:
    assert kinds(render(), "NetworkPolicy") == []


@pytest.mark.parametrize("values", [ON, COLLECTIVE])
def test_ingress_is_exactly_the_ports_of_the_containers(values: Document) -> None:
    documents = render(values)
    for component, spec in policies(documents).items():
        opened: set[int] = set()
        for _, template in pod_templates(documents):
            if selects(spec["podSelector"]["matchLabels"], template):
                opened |= {p["containerPort"] for c in containers(template) for p in c.get("ports", [])}
        reached = ports(spec["ingress"])
        ranges = {(1024, 65535)} if values is COLLECTIVE and component in ("attention", "expert") else set()
        assert reached - ranges == opened - ({29500} if ranges else set()), component
        assert ranges <= reached


def test_every_pod_of_the_release_has_a_policy() -> None:
    documents = render(ON)
    for workload, template in pod_templates(documents):
        covering = [s for s in policies(documents).values() if selects(s["podSelector"]["matchLabels"], template)]
        assert len(covering) == (0 if workload["kind"] == "Pod" else 1), workload["metadata"]["name"]


def test_pods_of_ray_are_open_to_each_other_and_to_nobody_else() -> None:
    documents = render({**ON, "ray": {"enabled": True}})
    found = policies(documents)
    assert set(found) == {"router", "ray-worker", "gateway"}
    for workload, template in pod_templates(documents):
        covering = [s for s in found.values() if selects(s["podSelector"]["matchLabels"], template)]
        assert len(covering) == (0 if workload["kind"] == "Pod" else 1)
    assert ports(found["ray-worker"]["ingress"]) == {(1024, 65535)}
    (rule,) = found["ray-worker"]["ingress"]
    components = [peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] for peer in rule["from"]]
    assert components == ["router", "ray-worker"]
    assert ports(found["gateway"]["ingress"]) == {8000, 29000}


def test_only_attention_workers_reach_the_data_links() -> None:
    spec = policies(render(ON))["expert"]
    (rule,) = [rule for rule in spec["ingress"] if 7070 in ports([rule])]
    (peer,) = rule["from"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "attention"


def test_clients_reach_gateway_and_router_only_when_they_are_named() -> None:
    peer = {"namespaceSelector": {"matchLabels": {"team": "apps"}}}
    found = policies(render({"networkPolicy": {"enabled": True, "clients": [peer]}}))
    assert {"from": [peer], "ports": [{"protocol": "TCP", "port": 8000}]} in found["gateway"]["ingress"]
    assert {"from": [peer], "ports": [{"protocol": "TCP", "port": 50051}]} in found["router"]["ingress"]
    assert {"ports": [{"protocol": "TCP", "port": 8000}]} in policies(render(ON))["gateway"]["ingress"]


def test_what_a_pod_may_reach() -> None:
    found = {component: ports(spec["egress"]) for component, spec in policies(render(ON)).items()}
    assert found == {
        "router": {53, 50051},
        "attention": {53, 50051, 7070},
        "expert": {53, 50051},
        "gateway": {53, 50051},
    }


def test_a_download_reaches_the_hub_and_nobody_reaches_it() -> None:
    spec = policies(render({**ON, "weights": {"uri": "hf://a/b"}}))["weights"]
    assert spec["ingress"] == []
    assert ports(spec["egress"]) == {53, 443}


def test_more_ways_out_can_be_given() -> None:
    extra = {"ports": [{"protocol": "TCP", "port": 4317}]}
    for spec in policies(render({"networkPolicy": {"enabled": True, "extraEgress": [extra]}})).values():
        assert extra in spec["egress"]


def test_metrics_are_open_to_the_namespace_that_scrapes() -> None:
    for spec in policies(render(ON)).values():
        (rule, *_) = spec["ingress"]
        assert rule["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
