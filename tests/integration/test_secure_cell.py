"""A whole cell behind mutual TLS, API keys and an operator's key: workers, smg, commands and clients find their way in,
and nobody else does."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
import trustme
from openai import OpenAI

from moonshard.errors import Unavailable
from moonshard_cluster.access import Access
from moonshard_cluster.client import Client
from tests.integration.cells import moonshard
from tests.integration.gateway_cells import ANSWER_S, INSTANT, MODEL, HttpCell, running_gateway

KEY = "key-of-alice-0123456789"
OPERATOR = "key-of-the-operator-0123456789"


@dataclass(frozen=True)
class Secure:
    """options: of every command that asks the router."""

    http: HttpCell
    options: tuple[str, ...]
    folder: Path


@pytest.fixture(scope="module")
def secure(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    folder = tmp_path_factory.mktemp("secure")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.crt")
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(folder / "router.key")
    for part, mode in zip(issued.cert_chain_pems, "wa", strict=False):
        part.write_to_path(folder / "router.crt", append=mode == "a")
    for name, text in (("keys", f"alice {KEY}\n"), ("operator", OPERATOR), ("mine", KEY)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o600)
    router = {
        "tls_cert": folder / "router.crt", "tls_key": folder / "router.key", "tls_ca": folder / "ca.crt",
        "tls_client_ca": folder / "ca.crt", "api_keys_file": folder / "keys", "operator_key_file": folder / "operator",
        "open_gateway": True,
    }  # fmt: skip
    options = ("--tls-ca", "ca.crt", "--tls-cert", "router.crt", "--tls-key", "router.key", "--api-key-file", "mine")
    told = tuple(str(folder / it) if not it.startswith("--") else it for it in options)
    with running_gateway(tiny_checkpoint, folder / "logs", router=router) as http:
        yield Secure(http, (*told, "--operator-key-file", str(folder / "operator")), folder)


def test_http_asks_for_the_key_and_reaches_the_router_by_mutual_tls(secure: Secure) -> None:
    messages = [{"role": "user", "content": "Hello"}]

    def ask(key: str) -> str:
        client = OpenAI(base_url=f"{secure.http.url}/v1", api_key=key, max_retries=0, timeout=ANSWER_S)
        answer = client.chat.completions.create(
            model=MODEL,
            messages=messages,
            max_tokens=4,
            extra_body=INSTANT,  # type: ignore[arg-type]
        )
        return str(answer.choices[0].finish_reason)

    assert ask(KEY) in ("length", "stop")
    with pytest.raises(openai.AuthenticationError):
        ask("wrong")


def test_commands_with_the_files_get_in(secure: Secure) -> None:
    router = ("--router", secure.http.cluster.router_address)
    said = moonshard(*secure.options, "generate", "Hello", "--max-tokens", "4", *router)
    assert said.returncode == 0, said.stderr
    assert moonshard(*secure.options, "status", *router).returncode == 0
    assert moonshard(*secure.options, "experts", "--once", *router).returncode == 0
    assert moonshard(*secure.options, "trace", *router).returncode == 0
    figures = secure.folder / "figures.json"
    measured = moonshard(
        *secure.options, "bench", *router, "--no-machine", "--rounds", "1", "--batches", "1,2", "--prefill", "8",
        "--new-tokens", "8", "--json", str(figures),
    )  # fmt: skip
    assert measured.returncode == 0, measured.stderr
    assert [it["name"] for it in json.loads(figures.read_text())["serving"]] == ["prefill 8", "decode b1", "decode b2"]


def test_without_them_nobody_does(secure: Secure) -> None:
    address = secure.http.cluster.router_address
    plain = moonshard("bench", "--router", address, "--no-machine", "--rounds", "1", "--timeout", "5")
    assert plain.returncode == 1
    assert "error: the router at" in plain.stderr
    assert "Traceback" not in plain.stderr
    no_keys = secure.options[:6]
    refused = moonshard(*no_keys, "bench", "--router", address, "--no-machine", "--rounds", "1")
    assert "API key" in refused.stderr, refused.stderr
    for command in ("status", "trace"):
        assert "operator" in moonshard(*no_keys, command, "--router", address).stderr
    with Client(address, Access()) as client, pytest.raises(Unavailable):
        client.model()
