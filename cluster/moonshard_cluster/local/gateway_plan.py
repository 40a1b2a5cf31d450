"""How smg is started in front of a cell: parsers by checkpoint, ports by configuration."""

import dataclasses
import json
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from moonshard.config import CellConfig
from moonshard.errors import ConfigError
from moonshard.router.run_file import reachable
from moonshard.router.template import read_template
from moonshard_cluster.local.plan import free_port

# Where --http-port is not given: the first of these that is free.
DEFAULT_PORT = 8000
NUM_TRIED = 100

# What the published examples call the model, so that they run as they are.
PUBLISHED_NAMES = ("kimi-k2.5", "moonshotai/Kimi-K2.5")

TOOL_SECTION, THOUGHT_START = "<|tool_calls_section_begin|>", "<think>"


@dataclass(frozen=True, slots=True)
class GatewayPlan:
    """What the program is told, in a file that only its owner reads.

    control_key: opens smg's own control plane, which would otherwise register foreign backends for whoever can reach
    the port. aliases: further names of the model. api_keys_file: as the router's; "" asks callers for no key. ca,
    client_cert, client_key: with them the router is called by TLS.
    """

    router_address: str
    host: str
    port: int
    metrics_host: str
    metrics_port: int
    reasoning_parser: str | None
    tool_parser: str | None
    control_key: str
    aliases: dict[str, str]
    api_keys_file: str = ""
    ca: str = ""
    client_cert: str = ""
    client_key: str = ""

    @property
    def url(self) -> str:
        """As a client on this machine writes it."""
        return f"http://{reachable(self.host, self.port)}"


def is_barred(config: CellConfig) -> bool:
    """Whether the router asks the gateway for what smg cannot bring: a key, or TLS."""
    router = config.router
    return router.tls_cert is not None or (router.api_keys_file is not None and not router.open_gateway)


def plan_gateway(config: CellConfig) -> GatewayPlan:
    """All but the router's address, which is known once it listens.

    Raises ConfigError naming the port that cannot be had, CheckpointError without a template.
    """
    source, _ = read_template(config.checkpoint)
    router = config.router
    if router.tls_cert:
        raise ConfigError(
            "router.tls_cert",
            "smg 1.13 speaks plain text to a router, whatever its address says: start with --no-http, or put TLS and "
            "HTTP in front of a router on the loopback interface",
        )
    if is_barred(config):
        raise ConfigError(
            "router.open_gateway",
            "must be true where there are API keys: smg checks them but cannot hand them on (or start with --no-http)",
        )
    return GatewayPlan(
        router_address="",
        host=config.gateway.host,
        port=_port(config),
        metrics_host=config.metrics.host,
        metrics_port=_metrics_port(config),
        reasoning_parser=reasoning_parser(source),
        tool_parser="kimik2" if TOOL_SECTION in source else None,
        control_key=secrets.token_urlsafe(24),
        aliases={name: config.model_name for name in PUBLISHED_NAMES if name != config.model_name},
        api_keys_file=str(router.api_keys_file or ""),
        **tls_files(config),
    )


def tls_files(config: CellConfig) -> dict[str, str]:
    """As the workers call the router."""
    router = config.router
    if not router.tls_cert:
        return {}
    mutual = router.tls_client_ca is not None
    return {
        "ca": str(router.tls_ca or router.tls_cert),
        "client_cert": str(router.tls_worker_cert or router.tls_cert) if mutual else "",
        "client_key": str(router.tls_worker_key or router.tls_key) if mutual else "",
    }


def reasoning_parser(template: str) -> str | None:
    """smg's name for how thoughts are marked, by what the checkpoint's template writes."""
    if THOUGHT_START not in template:
        return None
    # K2-Thinking thinks always; K2.5 and later can be told not to.
    return "kimi_k25" if "thinking" in template.replace("<think", "").replace("</think", "") else "kimi_thinking"


def _metrics_port(config: CellConfig) -> int:
    """Behind those of the router and the workers."""
    base = config.metrics.base_port
    return base + 1 + config.num_attention + config.num_shards * config.num_replicas if base else free_port()


def _port(config: CellConfig) -> int:
    host, asked = config.gateway.host, config.gateway.port
    if asked is not None:
        if asked and not _is_free(host, asked):
            raise ConfigError("gateway.port", f"cannot listen on {host}:{asked}; is the port in use?")
        return asked or free_port()
    for port in range(DEFAULT_PORT, DEFAULT_PORT + NUM_TRIED):
        if _is_free(host, port):
            return port
    raise ConfigError("gateway.port", f"none of {DEFAULT_PORT}..{DEFAULT_PORT + NUM_TRIED - 1} is free on {host}")


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError:
            return False
    return True


def write_plan(plan: GatewayPlan, path: Path) -> None:
    """It holds a secret, so it is never on a command line and only its owner may read it."""
    path.touch(mode=0o600)
    path.write_text(json.dumps(dataclasses.asdict(plan)))
