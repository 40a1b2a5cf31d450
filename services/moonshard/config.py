"""The configuration of a cell: read once, checked, frozen.

Unknown keys fail and name the nearest valid one. "auto" is resolved by the launcher before the workers see it.
"""

import difflib
import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from moonshard.errors import ConfigError

Port = Annotated[int, Field(ge=0, le=65535)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveSeconds = Annotated[float, Field(gt=0, le=86_400)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RouterConfig(_Section):
    """The front door. `port` 0 takes a free one.

    trust_control_tokens: spellings of control tokens in callers' messages become those tokens, as in the reference.
    operator_key_file: holds the key for Cluster and Workers. api_keys_file: lines TENANT KEY [WEIGHT], one of which a
    caller of Inference must bring; open_gateway: VllmEngine asks for none, for a gateway that checks keys itself and
    cannot hand them on. tls_cert, tls_key: PEM, of the port; tls_client_ca: callers must bring a certificate
    that it signed. tls_ca, tls_worker_cert, tls_worker_key, tls_server_name: how this cell's workers dial the router;
    unset, they trust the router's own certificate and bring it. All of these files are read again when they change.
    max_connection_age_s: then a connection is asked to make way for a new one, calls on it go on; 0 is never.
    """

    host: str = "127.0.0.1"
    port: Port = 50051
    max_queue: PositiveInt = 1024
    max_message_mb: PositiveInt = 64
    default_max_tokens: PositiveInt = 32_768
    operator_key_file: Path | None = None
    trust_control_tokens: bool = False
    api_keys_file: Path | None = None
    open_gateway: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    tls_ca: Path | None = None
    tls_worker_cert: Path | None = None
    tls_worker_key: Path | None = None
    tls_server_name: str = ""
    reflection: bool = True
    max_connection_age_s: Annotated[float, Field(ge=0, le=10_000_000)] = 0.0


class AttentionConfig(_Section):
    """Limits of one attention worker. KV capacity is num_blocks x block_size tokens. num_threads 0 is auto.

    prefix_cache: KV blocks of a prompt's beginning are shared with later prompts that begin alike. recheck_every: so
    many layers are dispatched for each row that a second copy of a shard computes too, to compare; 0 is never.
    """

    num_threads: Annotated[int, Field(ge=0, le=1024)] = 0
    max_num_seqs: PositiveInt = 64
    max_step_tokens: PositiveInt = 512
    prefill_chunk: PositiveInt = 256
    block_size: Annotated[int, Field(ge=1, le=1024)] = 16
    num_blocks: PositiveInt = 4096
    prefix_cache: bool = True
    recheck_every: Annotated[int, Field(ge=0)] = 4096


class ExpertConfig(_Section):
    """One expert shard. num_threads 0 is auto. activations: of rows inside an expert on the native CPU kernels.

    repacked_cache: a directory that keeps the experts in the native kernels' layout, as large as the experts; a shard
    that starts again maps them. fault_hooks_s: for `moonshard chaos`: signals make a shard answer nonsense, or nothing,
    for so many seconds; 0 ignores them. redundant_slots: of every layer, beyond the shard's block: above 0 experts may
    have copies and move while the cell runs (links only); then shards answer with each expert's output apart, so that
    no bit depends on where it was computed. verify_s: in so many seconds all resident weights are compared with what
    was loaded, evenly spread; 0 is never.
    """

    num_threads: Annotated[int, Field(ge=0, le=1024)] = 0
    activations: Literal["auto", "float32", "int16", "int8"] = "auto"
    repacked_cache: Path | None = None
    redundant_slots: Annotated[int, Field(ge=0, le=512)] = 0
    fault_hooks_s: Annotated[float, Field(ge=0, le=3600)] = 0.0
    verify_s: Annotated[float, Field(ge=0, le=604_800)] = 3600.0


class TimeoutConfig(_Section):
    """Every wait has one of these limits, in seconds.

    combine_s: for the answer of a shard whose link is up; then the shard is suspected. failover_s: for a lost shard or
    attention worker to come back; requests wait as long. 0: they fail at once. hedge_s: at least, before rows of a slow
    shard also go to its replica. stall_s: a process whose loop has not turned for so long fails its /livez; longer
    than combine_s and failover_s together, because a worker that waits for a shard is not to be killed for it.
    degraded_after_s: links only. When a shard has been lost for so long, tokens go on without its experts, the weights
    of the others raised, and are counted and flagged; 0 is never: a wrong answer is worse than a late one.
    """

    load_s: PositiveSeconds = 3600.0
    join_s: PositiveSeconds = 60.0
    combine_s: PositiveSeconds = 60.0
    failover_s: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    hedge_s: PositiveSeconds = 0.25
    stall_s: Annotated[PositiveSeconds, Field(validate_default=True)] = 180.0
    heartbeat_s: PositiveSeconds = 1.0
    drain_s: PositiveSeconds = 30.0
    degraded_after_s: Annotated[float, Field(ge=0, le=86_400)] = 0.0

    @field_validator("stall_s")
    @classmethod
    def _stall_outlasts_waits(cls, value: float, info: ValidationInfo) -> float:
        combine_s, failover_s = info.data.get("combine_s"), info.data.get("failover_s")
        if combine_s is None or failover_s is None:
            return value  # those are refused already
        if value <= combine_s + failover_s:
            raise ValueError(f"must exceed combine_s + failover_s = {combine_s:g} + {failover_s:g} seconds")
        return value


class MetricsConfig(_Section):
    """Where /metrics is served. `base_port` 0 takes free ports; else router, attention workers and shards
    take base_port, base_port + 1 ..., in this order. worker_port: one for every worker, where each has an address
    of its own, as pods do; 0 follows base_port.

    per_expert: a series for every (layer, expert), for a shard's per_expert_topk most loaded, or none; series per
    (layer, shard) are always there. Counts per expert leave a shard only in windows of at least load_window_s seconds
    and load_window_rows (row, expert) pairs in each layer: finer ones can give prompts away. The router keeps the
    windows of load_history_s seconds.

    trace_share: of requests whose routing is traced beside those that ask for it (metadata x-trace: 1); the router
    keeps the last traces_kept. otlp_endpoint: they also go there as OpenTelemetry spans, by OTLP over gRPC.
    """

    host: str = "127.0.0.1"
    base_port: Port = 0
    worker_port: Port = 0
    per_expert: Literal["full", "topk", "off"] = "full"
    per_expert_topk: PositiveInt = 64
    load_window_s: Annotated[float, Field(ge=0, le=86_400)] = 5.0
    load_window_rows: Annotated[int, Field(ge=0)] = 64
    load_history_s: PositiveSeconds = 900.0
    trace_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    traces_kept: PositiveInt = 128
    otlp_endpoint: Annotated[str, Field(pattern=r"^(https?://.+)?$")] = ""


class NetworkConfig(_Section):
    """Where shards listen when workers do not share a machine (`links = "tcp"`). link_port 0 takes free ports;
    else every shard listens on it, where each has an address of its own."""

    bind_host: str = "127.0.0.1"
    link_port: Port = 0


class GatewayConfig(_Section):
    """smg, the HTTP gateway that `moonshard up` starts in front of the router. `port` 0 takes a free one, None the
    first free one from 8000."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port | None = None


class CellConfig(_Section):
    """One cell: a router, its attention workers and its expert shards.

    links: sockets of the `links` transport. dtype: of activations and of rows on the wire. kernels: "native" are the
    C++ kernels for CPUs, "torch" its operators, "auto" the former where they are built. latent_norm_eps: None takes
    the checkpoint's rms_norm_eps, as vLLM and SGLang do; 1e-6 is what transformers computes (specification 2.1).
    run_dir holds sockets and router.json. collective_address: where rank 0 of the `all_to_all` transport meets the
    others. num_replicas: copies of each expert shard, each a process of its own (links only). num_attention: the most
    attention workers that may join; min_attention: how many the cell waits for before it serves, 0 is all of them.
    """

    checkpoint: Path
    model_name: str = ""
    num_shards: PositiveInt = 8
    num_attention: PositiveInt = 1
    transport: Literal["links", "all_to_all"] = "links"
    num_replicas: PositiveInt = 1
    min_attention: Annotated[int, Field(ge=0)] = 0
    links: Literal["unix", "tcp"] = "unix"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    kernels: Literal["auto", "native", "torch"] = "auto"
    latent_norm_eps: float | None = Field(default=None, gt=0)
    run_dir: Path = Path("/tmp/moonshard")
    collective_address: str = "127.0.0.1:29500"
    router: RouterConfig = RouterConfig()
    attention: AttentionConfig = AttentionConfig()
    experts: ExpertConfig = ExpertConfig()
    timeouts: TimeoutConfig = TimeoutConfig()
    metrics: MetricsConfig = MetricsConfig()
    network: NetworkConfig = NetworkConfig()
    gateway: GatewayConfig = GatewayConfig()

    @field_validator("num_replicas")
    @classmethod
    def _replicas_need_links(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("transport") == "all_to_all":
            raise ValueError("must be 1 with all_to_all, whose group has each shard once")
        return value

    @field_validator("min_attention")
    @classmethod
    def _some_attention_workers(cls, value: int, info: ValidationInfo) -> int:
        if value > (most := info.data.get("num_attention", value)):
            raise ValueError(f"must be at most num_attention = {most}")
        if 0 < value < most and info.data.get("transport") == "all_to_all":
            raise ValueError(f"must be 0 or {most} with all_to_all, whose group is whole or not at all")
        return value

    @field_validator("experts")
    @classmethod
    def _moving_needs_links(cls, value: ExpertConfig, info: ValidationInfo) -> ExpertConfig:
        if value.redundant_slots and info.data.get("transport") == "all_to_all":
            raise ValueError("redundant_slots must be 0 with all_to_all, whose shards hold contiguous blocks")
        return value

    @classmethod
    def build(cls, values: dict[str, Any]) -> Self:
        """Check plain values. Raises ConfigError naming the key, the value and, for a typo, the nearest key."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise first_problem(cls, error) from None

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a TOML or JSON file."""
        return cls.build(read_values(path))


def read_values(path: Path) -> dict[str, Any]:
    """What a TOML or JSON file says, not checked yet: it may be a part of a configuration. Raises ConfigError."""
    is_toml = path.suffix == ".toml"
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if is_toml else json.loads(text)
    except OSError as error:
        raise ConfigError("config", f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # of both parsers, and of bytes that are no UTF-8
        raise ConfigError("config", f"{path} is not {'TOML' if is_toml else 'JSON'}: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError("config", f"{path} must hold an object, got {type(values).__name__}")
    return values


def read_secret(field: str, path: Path) -> str:
    """A key that a file holds, without white space at its ends. Raises ConfigError naming `field`, never the key."""
    try:
        key = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(field, f"cannot read {path}: {error}") from None
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(field, f"{path} must hold one line of printable ASCII characters")
    return key


def first_problem(model: type[BaseModel], error: ValidationError) -> ConfigError:
    """The first complaint about a value of `model`, as an error that names the key and, for a typo, the nearest."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    key = ".".join(path) or "config"
    if first["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(path[-1], _keys(model, path[:-1]), n=1, cutoff=0.0)
        return ConfigError(key, f"unknown key; did you mean {nearest[0]!r}?")
    if first["type"] == "missing":
        return ConfigError(key, "is required")
    return ConfigError(key, f"{first['msg']}, got {first['input']!r}")


def _keys(model: type[BaseModel], path: list[str]) -> list[str]:
    for part in path:
        annotation = model.model_fields[part].annotation
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel)
        model = annotation
    return list(model.model_fields)
