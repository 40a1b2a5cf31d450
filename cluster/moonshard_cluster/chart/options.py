"""What a user may set in the chart: the source of values.yaml, values.schema.json and the table in the chart's README.

Keys are camelCase in the chart. `config` takes the keys of the cell's own configuration, which the chart does not set.
Objects of Kubernetes itself (affinity, resources ...) are passed through as they are.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

KubernetesObject = dict[str, Any]
Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$|^$")]


class Options(BaseModel):
    """A level of values.yaml: unknown keys fail."""

    model_config = ConfigDict(extra="forbid", alias_generator=to_camel, populate_by_name=True)


def option(default: Any, text: str) -> Any:
    """A field with its default and the comment that values.yaml and the README give it."""
    if isinstance(default, dict | list | type):
        factory = default if isinstance(default, type) else (lambda: type(default)(default))
        return Field(default_factory=factory, description=text)
    return Field(default, description=text)


class Image(Options):
    registry: str = option("", "registry host, put before the repository")
    repository: str = option("moonshard/worker", "image of attention and expert pods (torch inside)")
    tag: str = option("", "tag; empty is the chart's appVersion")
    digest: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")] = option("", "sha256:...; wins over the tag")
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = option("IfNotPresent", "when to pull")


class RouterImage(Image):
    repository: str = option("moonshard/router", "image of router, gateway and helm test (no torch)")


class SecretKey(Options):
    existing_secret: Name = option("", "name of a Secret that exists; the chart never holds the value itself")
    key: str = option("token", "key inside the Secret")


class Download(Options):
    existing_claim: Name = option("", "claim to download into; empty makes one")
    size: str = option("700Gi", "size of the claim that is made")
    storage_class: str = option("", "its storage class; empty is the cluster's default")
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = option(
        "ReadWriteMany", "ReadWriteOnce only where all pods run on one node"
    )
    wait_minutes: Count = option(180, "how long pods wait for the download before they give up and are restarted")
    token: SecretKey = option(SecretKey, "access token for gated models")
    resources: KubernetesObject = option(
        {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "4Gi"}}, "resources of the download Job"
    )


class Weights(Options):
    uri: Annotated[str, Field(pattern=r"^(pvc|hf|hostpath|image)://[^ ]+$")] = option(
        "pvc://moonshard-weights/Kimi-K2.5",
        "pvc://CLAIM/PATH, hf://ORG/NAME[@REVISION], hostpath:///PATH, or image://REFERENCE (Kubernetes 1.36 on)",
    )
    download: Download = option(Download, "for hf:// only")
    checksums: Name = option("", "ConfigMap with a key SHA256SUMS; a Job compares every file it lists with it")


class Autoscaling(Options):
    enabled: bool = option(False, "off by default: a live autoscaler owns the number of replicas")
    kind: Literal["keda", "hpa"] = option("keda", "KEDA ScaledObject or HorizontalPodAutoscaler (external metric)")
    min_replicas: Count = option(1, "")
    max_replicas: Count = option(4, "")
    prometheus: str = option("http://prometheus-operated.monitoring.svc:9090", "address of Prometheus, for KEDA")
    waiting_per_replica: Count = option(5, "waiting requests that one replica is worth")
    cooldown_seconds: Count = option(1800, "before scaling down: weights load in tens of minutes")


class Startup(Options):
    period_seconds: Count = option(10, "")
    failure_threshold: Count = option(540, "times the period is how long loading may take (90 minutes)")


class Liveness(Options):
    period_seconds: Count = option(15, "")
    timeout_seconds: Count = option(10, "")
    failure_threshold: Count = option(4, "")


class Readiness(Options):
    period_seconds: Count = option(5, "")
    timeout_seconds: Count = option(5, "")
    failure_threshold: Count = option(2, "")


class Probes(Options):
    startup: Startup = option(Startup, "until the weights are loaded")
    liveness: Liveness = option(Liveness, "GET /livez: progress is made while work is queued")
    readiness: Readiness = option(Readiness, "GET /readyz: coverage of this role is complete")


class QuickStartup(Startup):
    failure_threshold: Count = option(60, "times the period is how long starting may take (10 minutes)")


class QuickProbes(Probes):
    startup: Startup = option(QuickStartup, "until the process listens")


class Pod(Options):
    """What every kind of pod of the chart may be given."""

    resources: KubernetesObject = option({}, "requests and limits; quantities are strings")
    extra_env: list[KubernetesObject] = option([], "more variables; a name given here replaces the chart's own")
    extra_env_from: list[KubernetesObject] = option([], "")
    extra_args: list[str] = option([], "more arguments of the program")
    extra_volumes: list[KubernetesObject] = option([], "")
    extra_volume_mounts: list[KubernetesObject] = option([], "")
    init_containers: list[KubernetesObject] = option([], "")
    sidecars: list[KubernetesObject] = option([], "")
    pod_annotations: dict[str, str] = option({}, "")
    pod_labels: dict[str, str] = option({}, "")
    node_selector: dict[str, str] = option({}, "")
    tolerations: list[KubernetesObject] = option([], "")
    affinity: KubernetesObject = option({}, "")
    topology_spread_constraints: list[KubernetesObject] = option(
        [], "replaces the chart's own, which spreads a component over hosts where it can"
    )
    priority_class_name: str = option("", "")
    runtime_class_name: str = option("", "nvidia, for example")
    scheduler_name: str = option("", "for gang schedulers")
    resource_claims: list[KubernetesObject] = option([], "DRA claims of the pod")
    probes: Probes = option(Probes, "")


class Router(Pod):
    resources: KubernetesObject = option(
        {"requests": {"cpu": "2", "memory": "2Gi"}, "limits": {"memory": "4Gi"}}, "requests and limits"
    )
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = option("ClusterIP", "of the gRPC Service")
    service_annotations: dict[str, str] = option({}, "")
    port: Port = option(50051, "gRPC: clients, gateway and the workers' control streams")
    max_wait_for_drain_seconds: Count = option(120, "how long running answers may finish; timeouts.drain_s of the cell")
    probes: Probes = option(QuickProbes, "")


class Attention(Pod):
    replicas: Count = option(1, "attention workers, each with a KV cache of its own")
    gpus: Annotated[int, Field(ge=0)] = option(0, "per pod; 0 computes on CPUs")
    gpu_resource: str = option("nvidia.com/gpu", "extended resource the GPUs are asked by")
    resources: KubernetesObject = option(
        {"requests": {"cpu": "16", "memory": "64Gi"}, "limits": {"memory": "64Gi"}},
        "23 GiB of weights and the KV cache",
    )
    shared_memory: str = option("2Gi", "size of /dev/shm, counted into the memory limit")
    drain_seconds: Count = option(30, "how long sequences may finish on one that leaves before others go on with them")
    autoscaling: Autoscaling = option(Autoscaling, "on the length of the router's queue")


class Experts(Pod):
    shards: Count = option(8, "expert shards; must divide the model's experts")
    replicas: Count = option(1, "copies of every shard, a StatefulSet each; from two on losing a pod costs no pause")
    gpus: Annotated[int, Field(ge=0)] = option(0, "per pod; 0 computes on CPUs, where INT4 experts live happily")
    gpu_resource: str = option("nvidia.com/gpu", "extended resource the GPUs are asked by")
    port: Port = option(7070, "data links from attention workers")
    resources: KubernetesObject = option(
        {"requests": {"cpu": "16", "memory": "96Gi"}, "limits": {"memory": "96Gi"}},
        "71.3 GB of INT4 experts a shard of K2.5",
    )
    shared_memory: str = option("2Gi", "size of /dev/shm, counted into the memory limit")
    drain_seconds: Count = option(
        900, "with copies: how long a shard that leaves may wait until its experts have another one (preStop)"
    )


class Gateway(Pod):
    enabled: bool = option(True, "smg: OpenAI and Anthropic HTTP in front of the router")
    replicas: Count = option(2, "")
    port: Port = option(8000, "HTTP")
    metrics_port: Port = option(29000, "")
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = option("ClusterIP", "of the HTTP Service")
    service_annotations: dict[str, str] = option({}, "")
    resources: KubernetesObject = option(
        {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}, "requests and limits"
    )
    reasoning_parser: str = option("kimi_k25", "")
    tool_call_parser: str = option("kimik2", "")
    probes: Probes = option(QuickProbes, "")
    autoscaling: Autoscaling = option(Autoscaling, "on waiting requests; the gateway holds no state")


class Rdma(Options):
    resource: str = option("rdma/ib", "extended resource, asked for in requests and limits")
    count: Count = option(1, "")
    interface: str = option("eth0", "NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME")
    hca: str = option("", "NCCL_IB_HCA")
    gid_index: str = option("", "NCCL_IB_GID_INDEX")
    annotations: dict[str, str] = option({}, "of the worker pods: secondary networks (Multus)")


class Network(Options):
    profile: Literal["pod", "hostNetwork", "rdma"] = option(
        "pod", "rdma adds the device, IPC_LOCK and NCCL's variables; policies reach neither hostNetwork nor RDMA"
    )
    rdma: Rdma = option(Rdma, "")
    collective_port: Port = option(29500, "where the ranks of transport all_to_all meet, at expert 0")


class IssuerRef(Options):
    name: Name = option("", "")
    kind: Literal["Issuer", "ClusterIssuer"] = option("Issuer", "")
    group: str = option("cert-manager.io", "")


class Tls(Options):
    enabled: bool = option(False, "TLS on the router's gRPC port")
    existing_secret: Name = option("", "Secret with tls.crt, tls.key and ca.crt")
    mutual: bool = option(False, "ask clients for certificates of the same authority, too")
    issuer_ref: IssuerRef = option(IssuerRef, "of cert-manager, which then makes the Secret")


class Auth(Options):
    existing_secret: Name = option("", "Secret with the file of API keys and tenants; empty asks for no key")
    key: str = option("api-keys", "key inside the Secret: lines TENANT KEY [WEIGHT]")
    operator_key: str = option("", "key inside the Secret with the operator's key, which workers bring, too")
    client_key: str = option("", "key inside the Secret with one API key, which the helm test uses")


class PodMonitoring(Options):
    enabled: bool = option(False, "PodMonitors for workers, ServiceMonitors for router and gateway")
    interval: str = option("15s", "")
    scrape_timeout: str = option("10s", "")
    additional_labels: dict[str, str] = option({}, "kube-prometheus-stack wants its `release: NAME` here")
    honor_labels: bool = option(False, "")
    relabelings: list[KubernetesObject] = option([], "")
    metric_relabelings: list[KubernetesObject] = option([], "")


class Rules(Options):
    enabled: bool = option(False, "PrometheusRule with recording rules and alerts")
    additional_labels: dict[str, str] = option({}, "")


class Dashboards(Options):
    enabled: bool = option(False, "a ConfigMap per dashboard for Grafana's sidecar")
    label: str = option("grafana_dashboard", "label that the sidecar looks for")
    folder: str = option("moonshard", "value of the grafana_folder annotation")
    annotations: dict[str, str] = option({}, "")


class Monitoring(Options):
    port: Port = option(9090, "/metrics and the probes of router and workers")
    monitors: PodMonitoring = option(PodMonitoring, "")
    rules: Rules = option(Rules, "")
    dashboards: Dashboards = option(Dashboards, "")


class NetworkPolicy(Options):
    enabled: bool = option(False, "default deny, and exactly the ports that are used")
    clients: list[KubernetesObject] = option([], "peers that may call gateway and router; empty is everybody")
    metrics_from: list[KubernetesObject] = option(
        [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
        "peers that may scrape /metrics",
    )
    extra_egress: list[KubernetesObject] = option([], "more egress rules for every pod")


class Disruption(Options):
    enabled: bool = option(True, "one expert pod, one attention pod, one gateway pod at a time")


class ServiceAccount(Options):
    create: bool = option(True, "")
    name: str = option("", "empty is the release's full name, or default when none is made")
    annotations: dict[str, str] = option({}, "")


class Ray(Options):
    enabled: bool = option(False, "a RayCluster (KubeRay) instead of StatefulSets; Ray places the workers")
    version: str = option("2.60.0", "Ray inside the worker image")
    nodes: Count = option(8, "Ray workers, one pod each")
    resources: KubernetesObject = option(
        {"requests": {"cpu": "16", "memory": "96Gi"}, "limits": {"memory": "96Gi"}}, "of one Ray worker"
    )
    gpus: Annotated[int, Field(ge=0)] = option(0, "per Ray worker")


class Values(Options):
    """values.yaml."""

    name_override: str = option("", "instead of the chart's name")
    fullname_override: str = option("", "instead of release and chart name")
    common_labels: dict[str, str] = option({}, "of every object; never part of a selector")
    common_annotations: dict[str, str] = option({}, "")
    image: Image = option(Image, "")
    router_image: RouterImage = option(RouterImage, "")
    image_pull_secrets: list[KubernetesObject] = option([], "")
    model_name: str = option("kimi-k2.5", "name in the API and in metrics")
    weights: Weights = option(Weights, "")
    config: KubernetesObject = option({}, "the cell's own configuration, key by key as in the TOML of `moonshard up`")
    router: Router = option(Router, "one pod: a cell has one router; more requests are more cells behind a gateway")
    attention: Attention = option(Attention, "")
    experts: Experts = option(Experts, "")
    gateway: Gateway = option(Gateway, "")
    network: Network = option(Network, "")
    tls: Tls = option(Tls, "")
    auth: Auth = option(Auth, "")
    monitoring: Monitoring = option(Monitoring, "")
    network_policy: NetworkPolicy = option(NetworkPolicy, "")
    disruption_budgets: Disruption = option(Disruption, "")
    service_account: ServiceAccount = option(ServiceAccount, "")
    ray: Ray = option(Ray, "")
    extra_objects: list[KubernetesObject] = option([], "whole objects to render with the chart")
