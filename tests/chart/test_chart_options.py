"""The chart's options: generated texts in step, typos refused by name, settings that contradict each other refused."""

import functools
import json
from typing import Any

import jsonschema
import pytest
import yaml

from moonshard.config import CellConfig
from moonshard_cluster.chart.__main__ import texts
from moonshard_cluster.chart.documents import OWNED, known_keys, values_schema
from moonshard_cluster.chart.options import Values
from tests.chart.chart_rendering import CHART, refusal, render, run


def test_values_schema_and_table_are_in_step_with_options_and_configuration() -> None:
    stale = [path.name for path, text in texts(CHART).items() if path.read_text() != text]
    assert stale == [], "run: python -m moonshard_cluster.chart"


def test_defaults_are_what_the_options_say() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert values == Values().model_dump(by_alias=True)
    jsonschema.Draft7Validator.check_schema(values_schema())


def test_the_keys_that_are_known_are_those_of_options_and_configuration() -> None:
    tree = known_keys()
    assert set(tree) - {"global"} == set(Values().model_dump(by_alias=True))
    assert set(tree["config"]) == set(CellConfig.model_fields)
    assert tree["router"]["affinity"] is True
    for path in OWNED:
        assert functools.reduce(lambda level, key: level[key], path, tree["config"]) is False


@pytest.mark.parametrize("major", [3, 4])
@pytest.mark.parametrize(
    ("values", "path", "meant"),
    [
        ({"routerimage": {}}, "routerimage", "routerImage"),
        ({"attention": {"replicaz": 2}}, "attention.replicaz", "replicas"),
        ({"attention": {"autoscaling": {"min_replica": 2}}}, "attention.autoscaling.min_replica", "minReplicas"),
        (
            {"experts": {"probes": {"startup": {"failureTreshold": 5}}}},
            "experts.probes.startup.failureTreshold",
            "failureThreshold",
        ),
        ({"experts": {"tolerationz": []}}, "experts.tolerationz", "tolerations"),
        ({"config": {"num_replica": 3}}, "config.num_replica", "num_replicas"),
        ({"config": {"attention": {"numBlocks": 3}}}, "config.attention.numBlocks", "num_blocks"),
        ({"config": {"timeout": {"failover_s": 3}}}, "config.timeout", "timeouts"),
    ],
)
def test_a_typo_fails_and_names_the_nearest_key(values: dict[str, Any], path: str, meant: str, major: int) -> None:
    assert f"{path}: unknown key; did you mean '{meant}'?" in refusal(values, major)


@pytest.mark.parametrize("major", [3, 4])
def test_lint_names_the_nearest_key_too(major: int) -> None:
    done = run(major, "lint", "--strict", str(CHART), values={"experts": {"shardz": 8}})
    assert done.returncode != 0
    assert "experts.shardz: unknown key; did you mean 'shards'?" in done.stdout + done.stderr


def test_objects_of_kubernetes_have_keys_of_their_own() -> None:
    assert render({"router": {"affinity": {"nodeAffinity": {}}, "podLabels": {"nameOverridez": "x"}}})


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"experts": {"shards": "8"}}, "shards"),
        ({"experts": {"shards": 0}}, "shards"),
        ({"weights": {"uri": "s3://bucket/model"}}, "uri"),
        ({"image": {"digest": "sha256:12"}}, "digest"),
        ({"config": {"transport": "pigeons"}}, "transport"),
    ],
)
def test_a_wrong_value_fails_by_its_key(values: dict[str, object], key: str) -> None:
    assert key in refusal(values)


@pytest.mark.parametrize("path", OWNED, ids=".".join)
def test_what_the_chart_works_out_cannot_be_set_beside_it(path: tuple[str, ...]) -> None:
    value: Any = "x"
    for key in reversed(path):
        value = {key: value}
    assert f"config.{'.'.join(path)}: the chart sets it itself" in refusal({"config": value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attention": {"gpus": 1}}, "config.transport: must be all_to_all"),
        ({"config": {"transport": "all_to_all"}, "experts": {"replicas": 2}}, "experts.replicas"),
        (
            {"config": {"transport": "all_to_all"}, "attention": {"autoscaling": {"enabled": True}}},
            "attention.autoscaling: the group of all_to_all has a fixed number",
        ),
        ({"ray": {"enabled": True}, "attention": {"autoscaling": {"enabled": True}}}, "attention.autoscaling: on Ray"),
        (
            {"gateway": {"autoscaling": {"enabled": True, "minReplicas": 5}}},
            "gateway.autoscaling.minReplicas: must be at most maxReplicas = 4, got 5",
        ),
        ({"tls": {"enabled": True}}, "tls: needs existingSecret, or issuerRef.name"),
        ({"attention": {"extraEnv": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}}, "extraEnv: A"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, object], message: str) -> None:
    assert message in refusal(values)


def test_globals_of_a_parent_chart_are_accepted() -> None:
    assert render({"global": {"imageRegistry": "registry.example.com"}})


def test_old_and_vendor_versions_of_kubernetes() -> None:
    assert "1.28.0" in refusal({}, kube="1.28.0")
    assert render(kube="1.33.1-eks-1234567")


def test_the_table_names_every_key() -> None:
    readme = (CHART / "README.md").read_text()
    assert "`attention.autoscaling.waitingPerReplica`" in readme
    assert json.dumps(Values().weights.uri) in readme


def test_the_schema_of_the_configuration_is_the_programs_own() -> None:
    properties = values_schema()["properties"]["config"]["properties"]
    assert set(properties) == set(CellConfig.model_fields) - {path[0] for path in OWNED if len(path) == 1}
