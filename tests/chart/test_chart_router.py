"""router-deployment.yaml, router-service.yaml, configmap.yaml, certificate.yaml, serviceaccount.yaml, extra.yaml."""

import json

from tests.chart.chart_rendering import CHART, Document, cell_config, container, kinds, one, pod_templates, render


def test_a_cell_has_one_router_and_a_rollout_never_two() -> None:
    router = one(render(), "Deployment", "router")
    assert router["spec"]["replicas"] == 1
    assert router["spec"]["strategy"] == {"type": "Recreate"}


def test_the_router_runs_the_ordinary_program_without_torch() -> None:
    found = container(one(render(), "Deployment", "router"))
    assert found["command"] == ["python", "-m", "moonshard.router"]
    assert found["args"] == ["--config=/etc/moonshard/cell.json"]
    assert found["image"].startswith("moonshard/router:")


def test_workers_reach_a_router_that_is_not_ready_and_clients_do_not() -> None:
    documents = render()
    control = one(documents, "Service", "control")["spec"]
    assert control["publishNotReadyAddresses"] is True
    assert control["clusterIP"] == "None"
    assert "publishNotReadyAddresses" not in one(documents, "Service", "router")["spec"]
    for role in ("attention", "expert-r0"):
        arguments = container(one(documents, "StatefulSet", role))["args"]
        assert "--router=rel-moonshard-control.serving.svc:50051" in arguments


def test_the_pod_gets_time_to_drain() -> None:
    values = {"router": {"maxWaitForDrainSeconds": 300}}
    documents = render(values)
    assert cell_config(documents)["timeouts"]["drain_s"] == 300
    spec = one(documents, "Deployment", "router")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == 330
    (found,) = spec["containers"]
    command = found["lifecycle"]["preStop"]["exec"]["command"]
    assert command[:3] == ["moonshard", "drain", "router"]
    assert {"--limit=315", "--router=rel-moonshard-control.serving.svc:50051"} <= set(command)


def test_the_users_configuration_lies_under_what_the_chart_works_out() -> None:
    values = {"config": {"kernels": "torch", "attention": {"num_blocks": 99}, "timeouts": {"load_s": 7200}}}
    config = cell_config(render(values))
    assert config["kernels"] == "torch"
    assert config["attention"] == {"num_blocks": 99, "num_threads": 16}
    assert config["timeouts"] == {"load_s": 7200, "join_s": 900, "drain_s": 120}
    assert config["links"] == "tcp"
    assert config["network"] == {"bind_host": "0.0.0.0", "link_port": 7070}


def test_threads_follow_the_cpus_that_are_asked_for() -> None:
    values = {
        "attention": {"resources": {"requests": {"cpu": "2500m"}}},
        "experts": {"resources": {"requests": {"cpu": "100m"}}},
    }
    config = cell_config(render(values))
    assert (config["attention"]["num_threads"], config["experts"]["num_threads"]) == (2, 1)
    assert cell_config(render({"config": {"experts": {"num_threads": 3}}}))["experts"]["num_threads"] == 3


def test_a_changed_configuration_restarts_the_pods() -> None:
    def checksums(values: dict[str, object]) -> set[str]:
        documents = render(values)
        workloads = [one(documents, "Deployment", "router"), *kinds(documents, "StatefulSet")]
        return {w["spec"]["template"]["metadata"]["annotations"]["checksum/config"] for w in workloads}

    (before,), (after,) = checksums({}), checksums({"config": {"kernels": "torch"}})
    assert before != after


def test_the_cells_data_links_rank_0_is_the_first_shard() -> None:
    assert (
        cell_config(render())["collective_address"]
        == "rel-moonshard-expert-r0-0.rel-moonshard-expert.serving.svc:29500"
    )


def test_a_certificate_is_asked_for_only_when_tls_needs_one() -> None:
    assert kinds(render(), "Certificate") == []
    assert kinds(render({"tls": {"enabled": True, "existingSecret": "mine"}}), "Certificate") == []
    (found,) = kinds(render({"tls": {"enabled": True, "issuerRef": {"name": "ca"}}}), "Certificate")
    assert "rel-moonshard-control.serving.svc" in found["spec"]["dnsNames"]


def secret_items(template: Document) -> set[str]:
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    return {item["path"] for item in volumes["auth"]["secret"]["items"]} if "auth" in volumes else set()


def test_every_pod_reads_only_the_keys_that_it_needs() -> None:
    keys = {"existingSecret": "keys", "clientKey": "one", "operatorKey": "operator"}
    documents = render({"auth": keys})
    held = {workload["metadata"]["name"]: secret_items(template) for workload, template in pod_templates(documents)}
    assert held == {
        "rel-moonshard-router": {"api-keys", "operator-key"},
        "rel-moonshard-gateway": {"api-keys"},
        "rel-moonshard-attention": {"operator-key"},
        "rel-moonshard-expert-r0": {"operator-key"},
        "rel-moonshard-test": {"client-key"},
    }
    assert kinds(documents, "Secret") == []
    router = cell_config(documents)["router"]
    assert router["api_keys_file"] == "/etc/moonshard-auth/api-keys"
    assert router["operator_key_file"] == "/etc/moonshard-auth/operator-key"


def test_without_keys_nothing_of_them_is_mounted() -> None:
    assert all(secret_items(template) == set() for _, template in pod_templates(render()))


def test_service_account() -> None:
    assert kinds(render({"serviceAccount": {"create": False}}), "ServiceAccount") == []
    (account,) = kinds(render(), "ServiceAccount")
    assert account["automountServiceAccountToken"] is False


def test_extra_objects_are_rendered_as_they_are() -> None:
    extra = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mine"}}
    assert extra in render({"extraObjects": [extra]})


def test_the_helm_test_asks_through_the_clients_service() -> None:
    (pod,) = kinds(render(), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["containers"][0]["args"][1] == "--router=rel-moonshard-router.serving.svc:50051"


def test_the_chart_ships_no_secret() -> None:
    for path in CHART.rglob("*"):
        assert path.is_dir() or "BEGIN PRIVATE" not in path.read_text(errors="replace")
    assert json.dumps(render()).count('"kind": "Secret"') == 0
