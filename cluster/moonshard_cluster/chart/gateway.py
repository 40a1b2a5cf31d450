"""`python -m moonshard_cluster.chart.gateway`: smg in a pod of its own, set up as `moonshard up` does it.

Not smg's own command line, because that would show API keys in the process list and leave its control plane open.
"""

import argparse
import secrets
import sys
from pathlib import Path

from moonshard.config import CellConfig
from moonshard.errors import ConfigError
from moonshard_cluster.local.gateway_plan import PUBLISHED_NAMES, GatewayPlan, tls_files


def pod_plan(config: CellConfig, given: argparse.Namespace) -> GatewayPlan:
    """Parsers are told, not found: a gateway reads no checkpoint. Nobody else learns the control plane's key."""
    return GatewayPlan(
        router_address=given.router,
        host=given.host,
        port=given.port,
        metrics_host=given.host,
        metrics_port=given.metrics_port,
        reasoning_parser=given.reasoning_parser or None,
        tool_parser=given.tool_parser or None,
        control_key=secrets.token_urlsafe(24),
        aliases={name: config.model_name for name in PUBLISHED_NAMES if name != config.model_name},
        api_keys_file=str(config.router.api_keys_file or ""),
        **tls_files(config),
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="moonshard_cluster.chart.gateway", description="The HTTP gateway of a cell.")
    parser.add_argument("--config", type=Path, required=True, help="the cell's configuration, TOML or JSON")
    parser.add_argument("--router", required=True, help="HOST:PORT of the router")
    parser.add_argument("--host", default="0.0.0.0")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--metrics-port", type=int, default=29000)
    parser.add_argument("--reasoning-parser", default="kimi_k25")
    parser.add_argument("--tool-parser", default="kimik2")
    return parser.parse_args(arguments)


def main() -> int:
    given = parse()
    try:
        plan = pod_plan(CellConfig.read(given.config), given)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    from smg.router import Router

    from moonshard_cluster.local.gateway_program import router_arguments

    Router.from_args(router_arguments(plan)).start()
    return 0


if __name__ == "__main__":
    sys.exit(main())
