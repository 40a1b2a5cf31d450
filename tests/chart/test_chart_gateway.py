"""gateway.yaml."""

from tests.chart.chart_rendering import container, kinds, one, render


def test_the_gateway_speaks_to_the_router_through_its_service() -> None:
    found = container(one(render(), "Deployment", "gateway"))
    assert found["command"] == ["smg", "launch"]
    assert "--worker-urls=grpc://rel-moonshard-router.serving.svc:50051" in found["args"]
    assert {"--backend=vllm", "--reasoning-parser=kimi_k25", "--tool-call-parser=kimik2"} <= set(found["args"])


def test_with_tls_it_checks_the_routers_certificate() -> None:
    values = {"tls": {"enabled": True, "existingSecret": "mine", "mutual": True}}
    arguments = container(one(render(values), "Deployment", "gateway"))["args"]
    assert "--worker-urls=grpcs://rel-moonshard-router.serving.svc:50051" in arguments
    assert "--ca-cert-paths=/etc/moonshard-tls/ca.crt" in arguments
    assert "--client-cert-path=/etc/moonshard-tls/tls.crt" in arguments


def test_nothing_of_it_is_rendered_when_disabled() -> None:
    documents = render({"gateway": {"enabled": False}})
    assert [d["metadata"]["name"] for d in documents if "gateway" in d["metadata"]["name"]] == []
    assert len(kinds(documents, "Deployment")) == 1
