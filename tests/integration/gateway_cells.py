"""A real tiny cell with smg in front of it, and clients of both kinds."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anthropic import Anthropic
from openai import AsyncOpenAI, OpenAI
from safetensors.torch import load_file, save_file

from moonshard.tokenizer import load_tokenizer
from moonshard_cluster.client import Client
from moonshard_cluster.local.gateway import start_gateway
from moonshard_cluster.local.gateway_plan import plan_gateway
from moonshard_cluster.local.supervisor import LocalCluster
from tests.integration.cells import running_cell

MODEL = "kimi-tiny"
ANSWER_S = 90.0
INSTANT: dict[str, Any] = {"thinking": {"type": "disabled"}}

# Random weights hardly ever begin a tool call or end a thought. With rows of the head made that much longer these
# tokens are either very likely or very unlikely, as the hidden state points: both come within a few tokens.
LOUD = {"<|tool_calls_section_begin|>": 40.0, "</think>": 20.0}


@dataclass(frozen=True)
class HttpCell:
    url: str
    cluster: LocalCluster
    grpc: Client

    @property
    def openai(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="sk-any", max_retries=0, timeout=ANSWER_S)

    @property
    def openai_async(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key="sk-any", max_retries=0, timeout=ANSWER_S)

    @property
    def anthropic(self) -> Anthropic:
        return Anthropic(base_url=self.url, api_key="sk-any", max_retries=0, timeout=ANSWER_S)


@contextmanager
def running_gateway(checkpoint: Path, logs: Path, **values: Any) -> Iterator[HttpCell]:
    limits = {"max_num_seqs": 64, "num_blocks": 2048, "prefill_chunk": 256}
    settings = {"model_name": MODEL, "attention": limits, "gateway": {"port": 0}, **values}
    with running_cell(checkpoint, logs, **settings) as (cluster, client):
        plan = plan_gateway(cluster.config)
        start_gateway(cluster, plan)
        yield HttpCell(plan.url, cluster, client)


def make_loud(checkpoint: Path) -> None:
    """Change the head of a demo checkpoint in place."""
    special = load_tokenizer(checkpoint).special_tokens
    for path in checkpoint.glob("*.safetensors"):
        tensors = load_file(path)
        heads = [name for name in tensors if re.search(r"lm_head\.weight$", name)]
        for head in heads:
            for name, factor in LOUD.items():
                tensors[head][special[name]] *= factor
        if heads:
            save_file(tensors, path)
