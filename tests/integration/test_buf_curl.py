"""buf curl as a user runs it: by reflection, without a .proto at hand. And the same reflection from Python."""

import json
import subprocess

import grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.integration.gateway_cells import HttpCell
from tests.tools import require_npm_tool

SERVICES = {
    "moonshard.v1.Inference",
    "moonshard.v1.Cluster",
    "moonshard.v1.Workers",
    "vllm.grpc.engine.VllmEngine",
    "grpc.health.v1.Health",
}


def buf_curl(cell: HttpCell, *arguments: str, method: str = "") -> str:
    buf = require_npm_tool("buf", "@bufbuild/buf")
    url = f"http://{cell.cluster.router_address}{'/' if method else ''}{method}"
    command = [buf, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments, url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_lists_the_services(http_cell: HttpCell) -> None:
    assert set(buf_curl(http_cell, "--list-services").split()) >= SERVICES


def test_it_calls_them(http_cell: HttpCell) -> None:
    model = json.loads(buf_curl(http_cell, method="moonshard.v1.Inference/GetModel"))
    assert model["numExperts"] == 384
    asked = {"text": "Hello", "sampling": {"max_tokens": 3, "ignore_eos": True}}
    told = buf_curl(http_cell, "-d", json.dumps(asked), method="moonshard.v1.Inference/Generate")
    assert '"completionTokens": 3' in told
    assert json.loads(buf_curl(http_cell, method="vllm.grpc.engine.VllmEngine/HealthCheck"))["healthy"]
    assert json.loads(buf_curl(http_cell, method="grpc.health.v1.Health/Check"))["status"] == "SERVING"


def test_reflection_from_python(http_cell: HttpCell) -> None:
    with grpc.insecure_channel(http_cell.cluster.router_address) as channel:
        assert set(ProtoReflectionDescriptorDatabase(channel).get_services()) >= SERVICES
