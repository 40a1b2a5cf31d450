"""How smg is started: by checkpoint and configuration, without starting it."""

import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from moonshard.config import CellConfig
from moonshard.errors import ConfigError
from moonshard_cluster.local.gateway_plan import is_barred, plan_gateway, reasoning_parser, write_plan
from moonshard_cluster.local.gateway_program import api_keys, router_arguments


def _config(checkpoint: Path, **values: Any) -> CellConfig:
    return CellConfig.build({"checkpoint": checkpoint, "model_name": "kimi-x", "gateway": {"port": 0}, **values})


def test_a_k25_checkpoint(tiny_checkpoint: Path) -> None:
    plan = plan_gateway(_config(tiny_checkpoint))
    assert (plan.reasoning_parser, plan.tool_parser) == ("kimi_k25", "kimik2")
    assert plan.aliases == {"kimi-k2.5": "kimi-x", "moonshotai/Kimi-K2.5": "kimi-x"}
    arguments = router_arguments(plan)
    assert arguments.worker_urls == ["grpc://"]
    assert arguments.tenant_api_keys == []


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{% if thinking is false %}<think></think>{% endif %}", "kimi_k25"),
        ("<|im_assistant|><think>", "kimi_thinking"),
        ("<|im_assistant|>", None),
    ],
)
def test_the_template_tells_how_thoughts_are_marked(template: str, expected: str | None) -> None:
    assert reasoning_parser(template) == expected


def test_the_metrics_port_follows_the_workers(tiny_checkpoint: Path) -> None:
    config = _config(tiny_checkpoint, metrics={"base_port": 9100}, num_attention=2)
    assert plan_gateway(config).metrics_port == 9100 + 1 + 2 + 8


def test_a_port_in_use_is_named_and_the_default_moves_on(tiny_checkpoint: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"gateway.port: cannot listen on 127.0.0.1:{port}"):
            plan_gateway(_config(tiny_checkpoint, gateway={"port": port}))
    assert plan_gateway(_config(tiny_checkpoint, gateway={})).port >= 8000


def test_keys_reach_smg_but_no_command_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# ours\nalice sk-alice-1 2.5\nbob sk-bob-12\n")
    router: dict[str, Any] = {"api_keys_file": keys}
    with pytest.raises(ConfigError, match=r"router\.open_gateway"):
        plan_gateway(_config(tiny_checkpoint, router=router))
    plan = plan_gateway(_config(tiny_checkpoint, router=router | {"open_gateway": True}))
    arguments = router_arguments(plan)
    assert arguments.tenant_api_keys == api_keys(keys.read_text()) == [("alice", "sk-alice-1"), ("bob", "sk-bob-12")]
    write_plan(plan, tmp_path / "plan.json")
    assert stat.S_IMODE((tmp_path / "plan.json").stat().st_mode) == 0o600
    assert "sk-alice" not in (tmp_path / "plan.json").read_text()


def test_a_router_behind_tls_is_out_of_smgs_reach(tiny_checkpoint: Path) -> None:
    """Seen: smg 1.13 opens grpcs:// addresses with HTTP/2 in plain text."""
    router = {"tls_cert": "/tls.crt", "tls_key": "/tls.key"}
    config = _config(tiny_checkpoint, router=router)
    assert is_barred(config)
    with pytest.raises(ConfigError, match=r"router\.tls_cert: smg 1\.13 speaks plain text"):
        plan_gateway(config)
