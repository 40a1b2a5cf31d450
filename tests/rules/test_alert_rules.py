"""Alerts and recording rules by promtool: each alert fires when it should, none when all is well."""

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import REPOSITORY
from tests.tools import require_tool

CHART = REPOSITORY / "helm" / "moonshard"
RULES = sorted((CHART / "rules").glob("*.yaml"))
ALERTS = {
    rule["alert"]: rule
    for path in RULES
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
MODEL = 'model_name="m"'

# Per minute, for an hour and a half: a cell of two shards and one worker that does well.
WELL = {
    f"moonshard_experts_covered{{{MODEL}}}": "384x100",
    f"moonshard_experts_logical{{{MODEL}}}": "384x100",
    f"moonshard_requests_waiting{{{MODEL}}}": "0x100",
    'up{job="moonshard",instance="a:1"}': "1x100",
    f'moonshard_requests_total{{{MODEL},finish_reason="stop"}}': "0+600x100",
    f'moonshard_requests_total{{{MODEL},finish_reason="error"}}': "0x100",
    f'moonshard_engine_requests_running{{{MODEL},dp_rank="0"}}': "4x100",
    f'moonshard_engine_steps_total{{{MODEL},dp_rank="0"}}': "0+3000x100",
    f'moonshard_time_to_first_token_seconds_bucket{{{MODEL},le="1"}}': "0+600x100",
    f'moonshard_time_to_first_token_seconds_bucket{{{MODEL},le="20"}}': "0+600x100",
    f'moonshard_time_to_first_token_seconds_bucket{{{MODEL},le="+Inf"}}': "0+600x100",
    f'moonshard_inter_token_latency_seconds_bucket{{{MODEL},le="0.1"}}': "0+600x100",
    f'moonshard_inter_token_latency_seconds_bucket{{{MODEL},le="2"}}': "0+600x100",
    f'moonshard_inter_token_latency_seconds_bucket{{{MODEL},le="+Inf"}}': "0+600x100",
    f'moonshard_kv_cache_usage_ratio{{{MODEL},dp_rank="0"}}': "0.5x100",
    f'moonshard_preemptions_total{{{MODEL},dp_rank="0"}}': "0x100",
    # Rates and their mean are exact numbers: promtool compares to the last bit, and adds in any order.
    f'moonshard_expert_rank_tokens_total{{{MODEL},layer="1",ep_rank="0"}}': "0+960x100",
    f'moonshard_expert_rank_tokens_total{{{MODEL},layer="1",ep_rank="1"}}': "0+1200x100",
    f'moonshard_a2a_seconds_sum{{{MODEL},dp_rank="0",phase="combine"}}': "0+6x100",
    f'moonshard_step_seconds_sum{{{MODEL},dp_rank="0"}}': "0+60x100",
    f'moonshard_a2a_wait_seconds_total{{{MODEL},dp_rank="0",ep_rank="0"}}': "0+6x100",
    f'moonshard_a2a_wait_seconds_total{{{MODEL},dp_rank="0",ep_rank="1"}}': "0+6x100",
    f'moonshard_a2a_wait_seconds_total{{{MODEL},dp_rank="0",ep_rank="2"}}': "0+6x100",
}
WELL |= {
    f"moonshard_damaged_weights_total{{{MODEL}}}": "0x100",
    f'moonshard_recheck_disagreements_total{{{MODEL},dp_rank="0"}}': "0x100",
    f'moonshard_degraded_tokens_total{{{MODEL},dp_rank="0"}}': "0x100",
}
NOT_THERE = ""

# Alert, what is otherwise, its labels beside severity, its description.
ILL: list[tuple[str, dict[str, str], dict[str, str], str]] = [
    (
        "MoonshardExpertsUncovered",
        {f"moonshard_experts_covered{{{MODEL}}}": "336x100"},
        {"model_name": "m"},
        "336 experts of m are covered, too few to serve any request.",
    ),
    (
        "MoonshardRouterAbsent",
        {f"moonshard_requests_waiting{{{MODEL}}}": NOT_THERE},
        {},
        "No router exports moonshard_requests_waiting: it is down, or nobody scrapes it.",
    ),
    (
        "MoonshardProcessDown",
        {'up{job="moonshard",instance="a:1"}': "0x100"},
        {"job": "moonshard", "instance": "a:1"},
        "a:1 of moonshard does not answer.",
    ),
    (
        "MoonshardErrorRatioHigh",
        {f'moonshard_requests_total{{{MODEL},finish_reason="error"}}': "0+200x100"},
        {"model_name": "m"},
        "25% of the requests to m end with an error.",
    ),
    (
        "MoonshardStepsStalled",
        {f'moonshard_engine_steps_total{{{MODEL},dp_rank="0"}}': "9x100"},
        {"model_name": "m", "dp_rank": "0"},
        "Worker 0 has 4 running requests and finishes no iteration.",
    ),
    (
        "MoonshardFirstTokenSlow",
        {f'moonshard_time_to_first_token_seconds_bucket{{{MODEL},le="1"}}': "0x100"},
        {"model_name": "m"},
        "The 99th percentile of the time to the first token is 19.81s.",
    ),
    (
        "MoonshardTokensSlow",
        {f'moonshard_inter_token_latency_seconds_bucket{{{MODEL},le="0.1"}}': "0x100"},
        {"model_name": "m"},
        "The 99th percentile of the time between tokens is 1.981s.",
    ),
    (
        "MoonshardQueueLong",
        {f"moonshard_requests_waiting{{{MODEL}}}": "100x100"},
        {"model_name": "m"},
        "100 requests wait for an attention worker.",
    ),
    (
        "MoonshardKvCacheFull",
        {f'moonshard_kv_cache_usage_ratio{{{MODEL},dp_rank="0"}}': "0.95x100"},
        {"model_name": "m", "dp_rank": "0"},
        "Worker 0 uses 95% of its KV blocks.",
    ),
    (
        "MoonshardPreemptions",
        {f'moonshard_preemptions_total{{{MODEL},dp_rank="0"}}': "0+30x100"},
        {"model_name": "m", "dp_rank": "0"},
        "Worker 0 preempts 500m sequences per second.",
    ),
    (
        "MoonshardExpertsUnbalanced",
        {f'moonshard_expert_rank_tokens_total{{{MODEL},layer="1",ep_rank="1"}}': "0+7200x100"},
        {"model_name": "m"},
        "Balancedness is 566.7m on average over the layers; the busiest shard sets the pace.",
    ),
    (
        "MoonshardWaitingForExperts",
        {f'moonshard_a2a_seconds_sum{{{MODEL},dp_rank="0",phase="combine"}}': "0+30x100"},
        {"model_name": "m", "dp_rank": "0"},
        "Worker 0 spends 50% of its iterations in combine.",
    ),
    (
        "MoonshardStragglerShard",
        {f'moonshard_a2a_wait_seconds_total{{{MODEL},dp_rank="0",ep_rank="2"}}': "0+30x100"},
        {"model_name": "m", "ep_rank": "2"},
        "Attention workers wait 500m s per second for shard 2, more than twice the median.",
    ),
    (
        "MoonshardErrorBudgetFast",
        {f'moonshard_requests_total{{{MODEL},finish_reason="error"}}': "0+12x100"},
        {"model_name": "m"},
        "1.961% of the requests fail; the objective is 0.1 %.",
    ),
    (
        "MoonshardErrorBudgetSlow",
        {f'moonshard_requests_total{{{MODEL},finish_reason="error"}}': "0+6x100"},
        {"model_name": "m"},
        "0.9901% of the requests fail; the objective is 0.1 %.",
    ),
    (
        "MoonshardDamagedWeights",
        {f"moonshard_damaged_weights_total{{{MODEL}}}": "0x60 1x40"},
        {"model_name": "m"},
        "A shard of m found weights that are not what was loaded; the router's log names shard, layer and expert.",
    ),
    (
        "MoonshardCopiesDisagree",
        {f'moonshard_recheck_disagreements_total{{{MODEL},dp_rank="0"}}': "0x60 2x40"},
        {"model_name": "m"},
        "Two copies of a shard of m gave different answers to one row; the router's log names them, layer and experts.",
    ),
    (
        "MoonshardDegradedTokens",
        {f'moonshard_degraded_tokens_total{{{MODEL},dp_rank="0"}}': "0x80 0+50x20"},
        {"model_name": "m"},
        "A shard of m is lost and timeouts.degraded_after_s has passed: answers go on without it.",
    ),
]
# Needs that the recording rules are not loaded, which a test of all rules together cannot show.
UNTESTED = {"MoonshardRulesMissing"}


def expected(name: str, labels: dict[str, str], description: str) -> dict[str, Any]:
    rule = ALERTS[name]
    return {
        "exp_labels": {**rule["labels"], **labels},
        "exp_annotations": {**rule["annotations"], "description": description},
    }


def run_promtool(tmp_path: Path, tests: Sequence[dict[str, Any]]) -> None:
    (tmp_path / "tests.yaml").write_text(
        json.dumps({"rule_files": [str(path) for path in RULES], "evaluation_interval": "1m", "tests": tests})
    )
    command = [require_tool("promtool"), "test", "rules", str(tmp_path / "tests.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def case(changes: dict[str, str], alerts: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    series = {**WELL, **changes}
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items() if values],
        "alert_rule_test": [
            {"eval_time": "90m", "alertname": name, "exp_alerts": found} for name, found in alerts.items()
        ],
    }


def test_rules_pass_promtool() -> None:
    command = [require_tool("promtool"), "check", "rules", *map(str, RULES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nothing_fires_while_all_is_well(tmp_path: Path) -> None:
    run_promtool(tmp_path, [case({}, {name: [] for name in ALERTS})])


def test_each_alert_fires_with_its_words(tmp_path: Path) -> None:
    assert {name for name, *_ in ILL} | UNTESTED == set(ALERTS)
    run_promtool(
        tmp_path,
        [case(changes, {name: [expected(name, labels, words)]}) for name, changes, labels, words in ILL],
    )


def test_each_alert_has_a_heading_in_the_runbook() -> None:
    headings = re.findall(r"^## (\w+)$", (CHART / "RUNBOOK.md").read_text(), re.MULTILINE)
    assert headings == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"RUNBOOK.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")


def test_recorded_values(tmp_path: Path) -> None:
    values = {
        "moonshard:expert_balancedness:ratio_rate1m": ('layer="1",', 18 / 20),
        "moonshard:a2a_wait:ratio_rate5m": ('dp_rank="0",', 0.1),
        "moonshard:request_errors:ratio_rate5m": ("", 0.0),
        "moonshard:time_to_first_token_seconds:p99_5m": ("", 0.99),
    }
    checks = [
        {
            "expr": name,
            "eval_time": "90m",
            "exp_samples": [{"labels": f'{name}{{{labels}model_name="m"}}', "value": value}],
        }
        for name, (labels, value) in values.items()
    ]
    run_promtool(tmp_path, [{**case({}, {}), "promql_expr_test": checks}])
