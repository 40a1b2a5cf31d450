"""Which key opens which method, and which tenant a caller is. Without key files every method is open."""

import re
from collections.abc import Callable, Mapping

from moonshard.config import RouterConfig
from moonshard.errors import MoonshardError, Unauthenticated
from moonshard.router.api_keys import KeysFile, Metadata
from moonshard.router.operator_key import OperatorKey
from moonshard.rpc.caller import NOBODY, Caller

# Without API keys callers may name their tenant themselves: a gateway in front knows whom it serves.
TENANT_METADATA = "x-tenant"
PRIORITY_METADATA = "x-priority"
# "1": the routing of this request is traced, for the operator to read.
TRACE_METADATA = "x-trace"
MAX_TENANT_LENGTH = 64

# What only the operator and the cell's own workers call.
OPERATOR_SERVICES = ("moonshard.v1.Cluster", "moonshard.v1.Workers")
GATEWAY_SERVICE = "vllm.grpc.engine.VllmEngine"
# Who asks for these shows by other means, or they tell nothing of anybody.
OPEN_SERVICES = (
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
)


class Guard:
    """operator: also guards by itself what is private even in an open cell. refused: told of each refusal."""

    def __init__(self, config: RouterConfig, refused: Callable[[MoonshardError], None]) -> None:
        """Raises ConfigError when a key file cannot be used."""
        self.operator = OperatorKey.read(config)
        self._guards_operator = config.operator_key_file is not None
        self._keys = KeysFile(config.api_keys_file) if config.api_keys_file else None
        self._open_gateway = config.open_gateway
        self._refused = refused

    @property
    def weights(self) -> Mapping[str, float]:
        """Of the tenants that the operator named."""
        return self._keys.current().weights if self._keys else {}

    def identify(self, method: str, metadata: Metadata) -> Caller:
        """Who makes a call of /package.Service/Method. Raises Unauthenticated."""
        try:
            return self._identify(method.split("/")[1], metadata)
        except Unauthenticated as error:
            self._refused(error)
            raise

    def _identify(self, service: str, metadata: Metadata) -> Caller:
        if service in OPEN_SERVICES:
            return NOBODY
        if service in OPERATOR_SERVICES:
            if self._guards_operator:
                self.operator.check(metadata)
            return NOBODY
        keys = None if service == GATEWAY_SERVICE and self._open_gateway else self._keys
        given = {name: value for name, value in metadata if isinstance(value, str)}
        tenant = keys.current().tenant_of(metadata) if keys else given.get(TENANT_METADATA, "")
        priority = _priority(given.get(PRIORITY_METADATA, ""))
        return Caller(tenant[:MAX_TENANT_LENGTH], priority, traced=given.get(TRACE_METADATA) == "1")


def _priority(text: str) -> int:
    """What is no number of at most six digits is none: a header must not fail a request."""
    return int(text) if re.fullmatch(r"-?[0-9]{1,6}", text) else 0
