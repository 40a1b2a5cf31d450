"""`moonshard up`: a whole cell on this machine, until Ctrl-C."""

import shutil
import signal
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from moonshard.config import CellConfig
from moonshard.errors import Unavailable
from moonshard.v1 import inference_pb2 as pb
from moonshard_cluster.access import Access
from moonshard_cluster.cache import cache_dir
from moonshard_cluster.client import Client
from moonshard_cluster.commands import ask
from moonshard_cluster.commands.status import render
from moonshard_cluster.demo.trained_model import TRAINED
from moonshard_cluster.local.gateway import start_gateway
from moonshard_cluster.local.gateway_plan import GatewayPlan, is_barred, plan_gateway
from moonshard_cluster.local.plan import kernels_are_built, plan_cell
from moonshard_cluster.local.progress import LoadBars, wait_ready
from moonshard_cluster.local.supervisor import LocalCluster, error_of

if TYPE_CHECKING:
    from moonshard_cluster.on_ray.launcher import RayCluster

KEPT_LOGS = 5
# smg writes tool call ids as the model does where the model's name says that it is a Kimi.
DEMO_NAME = "kimi-demo"
NO_KERNELS = (
    "The native CPU kernels are not built, so torch's operators serve, several times slower. "
    "With a C++ compiler, run: python -m moonshard.kernels"
)
NO_HTTP = "No HTTP, gRPC only: smg cannot bring what the router asks for: TLS, or API keys without router.open_gateway."
# For --prompt: enough to see that the cell answers.
PROMPT_TOKENS, ANSWER_S = 160, 600.0


def up(
    checkpoint: Annotated[Path | None, typer.Argument(help="checkpoint directory; without it, the demo")] = None,
    attention: Annotated[int | None, typer.Option("--attention", help="attention workers [1]")] = None,
    shards: Annotated[int | None, typer.Option("--shards", help="expert shards [8]")] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", help="processes that hold each shard [1]")] = None,
    redundant_slots: Annotated[
        int | None,
        typer.Option("--redundant-slots", help="experts a shard holds beyond its own; with any they move [0]"),
    ] = None,
    transport: Annotated[str | None, typer.Option("--transport", help="links or all_to_all [links]")] = None,
    port: Annotated[int | None, typer.Option("--port", help="the router's gRPC port; 0 is any [50051]")] = None,
    dtype: Annotated[str | None, typer.Option("--dtype", help="auto, float32 or bfloat16 [auto]")] = None,
    max_seqs: Annotated[int | None, typer.Option("--max-seqs", help="sequences per attention worker [64]")] = None,
    kv_blocks: Annotated[int | None, typer.Option("--kv-blocks", help="KV blocks per attention worker [4096]")] = None,
    prefill_chunk: Annotated[int | None, typer.Option("--prefill-chunk", help="prompt tokens per step [256]")] = None,
    kernels: Annotated[str | None, typer.Option("--kernels", help="auto, native or torch [auto]")] = None,
    expert_activations: Annotated[
        str | None, typer.Option("--expert-activations", help="auto, float32, int16 or int8 [auto]")
    ] = None,
    attention_threads: Annotated[
        int | None, typer.Option("--attention-threads", help="per attention worker [cores / workers]")
    ] = None,
    expert_threads: Annotated[int | None, typer.Option("--expert-threads", help="per shard [cores / shards]")] = None,
    repacked_cache: Annotated[
        Path | None, typer.Option("--repacked-cache", help="directory that keeps repacked experts for faster restarts")
    ] = None,
    latent_norm_eps: Annotated[
        float | None, typer.Option("--latent-norm-eps", help="eps of MLA's latent norms [the checkpoint's]")
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option("--metrics-port", help="first of the /metrics ports; 0 is any [0]")
    ] = None,
    http_port: Annotated[
        int | None, typer.Option("--http-port", help="OpenAI and Anthropic HTTP; 0 is any [8000 or the next free one]")
    ] = None,
    no_http: Annotated[bool, typer.Option("--no-http", help="gRPC only")] = False,
    log_dir: Annotated[Path | None, typer.Option("--log-dir", help="where the processes' logs go")] = None,
    name: Annotated[str | None, typer.Option("--name", help="model name in the API and in metrics")] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="TOML or JSON; flags win over it")] = None,
    restart: Annotated[
        bool, typer.Option("--restart/--no-restart", help="start workers that die again; else the cell ends with them")
    ] = True,
    ray: Annotated[
        str | None, typer.Option("--ray", help="place the workers on this Ray cluster: HOST:PORT of its head, or auto")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="PEM certificate of the gRPC port")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="its private key")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option("--tls-client-ca", help="clients must bring a certificate that it signed")
    ] = None,
    api_keys: Annotated[
        Path | None, typer.Option("--api-keys", help="file of lines TENANT KEY [WEIGHT]; callers must bring one")
    ] = None,
    fault_hooks: Annotated[
        float | None, typer.Option("--fault-hooks", help="let `moonshard chaos` corrupt and partition shards, seconds")
    ] = None,
    degraded_after: Annotated[
        float | None,
        typer.Option("--degraded-after", help="seconds; then answer without a lost shard, flagged [never]"),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="ask this as soon as the cell is ready")] = None,
    once: Annotated[bool, typer.Option("--once", help="stop after --prompt is answered")] = False,
) -> None:
    """Start a router, attention workers and expert shards, and serve until Ctrl-C."""
    console = Console(stderr=True)
    values = {
        "checkpoint": checkpoint,
        "num_attention": attention,
        "num_shards": shards,
        "num_replicas": replicas,
        "transport": transport,
        "dtype": dtype,
        "latent_norm_eps": latent_norm_eps,
        "model_name": name,
        "router": {
            "port": port,
            "tls_cert": tls_cert and tls_cert.resolve(),
            "tls_key": tls_key and tls_key.resolve(),
            "tls_client_ca": tls_client_ca and tls_client_ca.resolve(),
            "api_keys_file": api_keys and api_keys.resolve(),
        },
        "kernels": kernels,
        "attention": {
            "max_num_seqs": max_seqs,
            "num_blocks": kv_blocks,
            "prefill_chunk": prefill_chunk,
            "num_threads": attention_threads,
        },
        "experts": {
            "num_threads": expert_threads,
            "activations": expert_activations,
            "fault_hooks_s": fault_hooks,
            "redundant_slots": redundant_slots,
            "repacked_cache": repacked_cache and repacked_cache.resolve(),
        },
        "timeouts": {"degraded_after_s": degraded_after},
        "metrics": {"base_port": metrics_port},
        "gateway": {"port": http_port, "enabled": False if no_http else None},
    }
    if checkpoint is None and config_file is None:
        values |= {"checkpoint": TRAINED, "model_name": name or DEMO_NAME}
    cell = _launcher(plan_cell(values, config_file), log_dir or fresh_log_dir(), ray)
    _serve(console, cell, prompt, once, restart)


def _launcher(config: CellConfig, log_dir: Path, ray: str | None) -> "LocalCluster | RayCluster":
    if ray is None:
        return LocalCluster(config, log_dir)
    from moonshard_cluster.on_ray.launcher import RayCluster

    return RayCluster(config, log_dir, ray)


def _serve(console: Console, cell: "LocalCluster | RayCluster", prompt: str | None, once: bool, restart: bool) -> None:
    started, config = time.monotonic(), cell.config
    # Raises KeyboardInterrupt, also where SIGINT is ignored, as it is in the background of a script.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if config.device == "cpu" and config.kernels == "auto" and not kernels_are_built():
        console.print(NO_KERNELS, style="yellow", markup=False, highlight=False)
    gateway = _gateway(console, config)
    with cell as cluster:
        try:
            with ExitStack() as stack:
                cluster.start()
                client = stack.enter_context(Client(cluster.router_address, Access.of_config(cluster.config.router)))
                with LoadBars(console) as bars:
                    found = wait_ready(cluster, client, bars)
                if gateway:
                    start_gateway(cluster, gateway)
                console.print(render(found))
                console.print(
                    f"\nready after {time.monotonic() - started:.1f} s: "
                    f"{f'OpenAI API on {gateway.url}/v1,' + chr(10) if gateway else ''}"
                    f"gRPC on {cluster.router_address}, logs in {cluster.log_dir}\n"
                    f'try:  moonshard chat --router {cluster.router_address} "How does a mixture of experts work?"\n',
                    highlight=False,
                )
                if prompt is not None:
                    _answer(client, prompt)
                if not once:
                    _watch(cluster, console, restart)
        except KeyboardInterrupt:
            console.print("\ndraining; Ctrl-C again to stop at once")
        # A second Ctrl-C leaves through the context manager, which kills.
        cluster.drain()


def _gateway(console: Console, config: CellConfig) -> GatewayPlan | None:
    """None without HTTP: unwanted, or neither asked for nor possible, which is told."""
    if config.gateway.enabled and config.gateway.port is None and is_barred(config):
        console.print(NO_HTTP, style="yellow", markup=False, highlight=False)
        return None
    return plan_gateway(config) if config.gateway.enabled else None


def _answer(client: Client, prompt: str) -> None:
    messages = [pb.Message(role="user", content=prompt)]
    request = pb.ChatRequest(messages=messages, sampling=pb.SamplingParams(max_tokens=PROMPT_TOKENS))
    ask.stream(client.chat(request, ANSWER_S))


def _watch(cluster: "LocalCluster | RayCluster", console: Console, restart: bool) -> None:
    """Serve until a child dies that is not to be started again, which ends the cell."""
    restart = restart and cluster.config.timeouts.failover_s > 0
    told = partial(console.print, style="yellow", markup=False, highlight=False, soft_wrap=True)
    if dead := cluster.watch(told) if restart else cluster.wait(None):
        raise Unavailable(f"{error_of(dead)}\nstopping the cell")


def fresh_log_dir() -> Path:
    """A fresh directory for this run's logs; those of the oldest runs are removed."""
    root = cache_dir() / "logs"
    root.mkdir(parents=True, exist_ok=True)
    runs = sorted(path for path in root.iterdir() if path.is_dir())
    for old in runs[: len(runs) - KEPT_LOGS + 1]:
        shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=root))
