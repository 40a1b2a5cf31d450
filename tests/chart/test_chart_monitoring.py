"""monitors.yaml, prometheusrule.yaml, dashboards.yaml."""

import json

import yaml

from tests.chart.chart_rendering import CHART, containers, kinds, pod_templates, render, selects


def test_nothing_unless_asked() -> None:
    documents = render()
    for kind in ("PodMonitor", "ServiceMonitor", "PrometheusRule"):
        assert kinds(documents, kind) == []
    assert [d for d in kinds(documents, "ConfigMap") if "dashboard" in d["metadata"]["name"]] == []


def test_every_component_is_scraped_at_the_port_where_it_serves_metrics() -> None:
    monitors = {"enabled": True, "additionalLabels": {"release": "prometheus"}, "interval": "20s"}
    documents = render({"monitoring": {"monitors": monitors}})
    scraped = kinds(documents, "PodMonitor") + kinds(documents, "ServiceMonitor")
    for monitor in scraped:
        assert monitor["metadata"]["labels"]["release"] == "prometheus"
        (endpoint,) = monitor["spec"].get("podMetricsEndpoints") or monitor["spec"]["endpoints"]
        assert endpoint["interval"] == "20s"
        selector = monitor["spec"]["selector"]["matchLabels"]
        matching = [t for _, t in pod_templates(documents) if selects(selector, t)]
        assert matching
        for template in matching:
            assert endpoint["port"] in {p["name"] for c in containers(template) for p in c["ports"]}
    components = {m["metadata"]["labels"]["app.kubernetes.io/component"] for m in scraped}
    assert components == {"router", "attention", "expert", "gateway"}


def test_a_service_monitor_finds_a_service_once() -> None:
    documents = render({"monitoring": {"monitors": {"enabled": True}}})
    for monitor in kinds(documents, "ServiceMonitor"):
        (endpoint,) = monitor["spec"]["endpoints"]
        labels = monitor["spec"]["selector"]["matchLabels"]
        services = [s for s in kinds(documents, "Service") if labels.items() <= s["metadata"]["labels"].items()]
        exposing = [s for s in services if endpoint["port"] in {p["name"] for p in s["spec"]["ports"]}]
        assert len(exposing) == 1


def test_rules_are_the_files_of_the_folder() -> None:
    groups = [
        g for path in sorted((CHART / "rules").glob("*.yaml")) for g in yaml.safe_load(path.read_text())["groups"]
    ]
    values = {"monitoring": {"rules": {"enabled": True, "additionalLabels": {"release": "p"}}}}
    (rule,) = kinds(render(values), "PrometheusRule")
    assert rule["spec"]["groups"] == groups
    assert rule["metadata"]["labels"]["release"] == "p"


def test_dashboards_are_the_files_of_the_folder_unchanged() -> None:
    documents = render({"monitoring": {"dashboards": {"enabled": True, "folder": "inference"}}})
    found = [d for d in kinds(documents, "ConfigMap") if "grafana_dashboard" in d["metadata"]["labels"]]
    rendered = {name: json.loads(text) for d in found for name, text in d["data"].items()}
    files = {path.name: json.loads(path.read_text()) for path in (CHART / "dashboards").glob("*.json")}
    assert rendered == files
    for config_map in found:
        assert config_map["metadata"]["annotations"]["grafana_folder"] == "inference"
        assert len(json.dumps(config_map)) < 2**20
