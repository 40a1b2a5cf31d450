"""gateway.yaml."""

from moonshard.config import CellConfig
from moonshard_cluster.chart.gateway import parse, pod_plan
from tests.chart.chart_rendering import cell_config, container, kinds, one, render


def test_the_gateway_speaks_to_the_router_through_its_service() -> None:
    found = container(one(render(), "Deployment", "gateway"))
    assert found["command"] == ["python", "-m", "moonshard_cluster.chart.gateway"]
    assert "--router=rel-moonshard-router.serving.svc:50051" in found["args"]
    plan = pod_plan(CellConfig.build(cell_config(render())), parse(found["args"]))
    assert (plan.port, plan.metrics_port) == (8000, 29000)
    assert (plan.reasoning_parser, plan.tool_parser) == ("kimi_k25", "kimik2")
    assert plan.api_keys_file == plan.ca == ""


def test_with_tls_it_checks_the_routers_certificate() -> None:
    values = {"tls": {"enabled": True, "existingSecret": "mine", "mutual": True}}
    plan = pod_plan(CellConfig.build(cell_config(render(values))), parse(["--config=x", "--router=r:1"]))
    assert plan.ca == "/etc/moonshard-tls/ca.crt"
    assert (plan.client_cert, plan.client_key) == ("/etc/moonshard-tls/tls.crt", "/etc/moonshard-tls/tls.key")
    mounts = container(one(render(values), "Deployment", "gateway"))["volumeMounts"]
    assert "/etc/moonshard-tls" in {mount["mountPath"] for mount in mounts}


def test_it_checks_the_routers_keys_and_no_key_is_on_a_command_line() -> None:
    documents = render({"auth": {"existingSecret": "keys"}})
    config = cell_config(documents)
    assert config["router"]["open_gateway"] is True
    plan = pod_plan(CellConfig.build(config), parse(["--config=x", "--router=r:1"]))
    assert plan.api_keys_file == "/etc/moonshard-auth/api-keys"
    assert "key" not in " ".join(container(one(documents, "Deployment", "gateway"))["args"])


def test_nothing_of_it_is_rendered_when_disabled() -> None:
    documents = render({"gateway": {"enabled": False}})
    assert [d["metadata"]["name"] for d in documents if "gateway" in d["metadata"]["name"]] == []
    assert len(kinds(documents, "Deployment")) == 1
