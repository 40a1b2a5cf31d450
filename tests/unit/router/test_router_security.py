"""TLS, keys, tenants: who gets in, who does not, and what changes while the router runs."""

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from moonshard.config import CellConfig
from moonshard.errors import ConfigError, MoonshardError, Unauthenticated
from moonshard.metrics import new_registry
from moonshard.router.api_keys import KeysFile, parse_keys
from moonshard.router.app import Router
from moonshard.router.guard import GATEWAY_SERVICE, Guard
from moonshard.rpc.tls import ClientTls, ServerTls, open_async_channel, server_tls
from moonshard.rpc.worker_stream import RouterLink, WorkerAccess
from moonshard.v1 import control_pb2
from moonshard.v1 import inference_pb2 as pb
from moonshard.v1.control_pb2_grpc import ClusterStub
from moonshard.v1.inference_pb2_grpc import InferenceStub
from tests.unit.router.router_peers import (
    collect,
    generate_request,
    join_message,
    ready_cell,
    run,
    small_config,
    small_model,
    started_router,
)

HOST = "127.0.0.1"


def write_certificate(ca: trustme.CA, folder: Path, name: str) -> tuple[Path, Path]:
    issued = ca.issue_cert(HOST, "localhost")
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    return cert, key


@pytest.fixture
def tls_files(tmp_path: Path) -> dict[str, Path]:
    """A router's and a client's certificate, each of an authority of its own."""
    server_ca, client_ca = trustme.CA(), trustme.CA()
    server_ca.cert_pem.write_to_path(tmp_path / "server-ca.crt")
    client_ca.cert_pem.write_to_path(tmp_path / "client-ca.crt")
    server, server_key = write_certificate(server_ca, tmp_path, "server")
    client, client_key = write_certificate(client_ca, tmp_path, "client")
    return {
        "server": server, "server_key": server_key, "server_ca": tmp_path / "server-ca.crt",
        "client": client, "client_key": client_key, "client_ca": tmp_path / "client-ca.crt",
    }  # fmt: skip


def secure_config(tmp_path: Path, files: dict[str, Path], **router: Any) -> CellConfig:
    defaults = {"port": 0, "tls_cert": files["server"], "tls_key": files["server_key"], "tls_ca": files["server_ca"]}
    return small_config(tmp_path, router=defaults | router)


async def get_model(address: str, tls: ClientTls | None, metadata: Sequence[tuple[str, str]] = ()) -> str:
    async with open_async_channel(address, tls) as channel:
        stub: Any = InferenceStub(channel)
        found = await stub.GetModel(pb.GetModelRequest(), timeout=10, metadata=tuple(metadata))
        return str(found.name)


async def refusal(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


def test_a_cell_works_over_tls_and_plain_text_is_turned_away(tmp_path: Path, tls_files: dict[str, Path]) -> None:
    async def test() -> None:
        async with ready_cell(secure_config(tmp_path, tls_files)) as cell:
            call = asyncio.create_task(collect(cell.inference.Generate(generate_request("hi"))))
            await cell.attention[0].answer("secret")
            assert "".join(r.text for r in await call) == "secret"
            address = cell.router.address
            assert await refusal(get_model(address, None)) is grpc.StatusCode.UNAVAILABLE
            stranger = ClientTls(tls_files["client_ca"])
            assert await refusal(get_model(address, stranger)) is grpc.StatusCode.UNAVAILABLE

    run(test)


def test_mutual_tls_asks_for_a_certificate(tmp_path: Path, tls_files: dict[str, Path]) -> None:
    config = secure_config(
        tmp_path, tls_files, tls_client_ca=tls_files["client_ca"],
        tls_worker_cert=tls_files["client"], tls_worker_key=tls_files["client_key"],
    )  # fmt: skip

    async def test() -> None:
        async with ready_cell(config) as cell:  # workers bring theirs
            known = ClientTls(tls_files["server_ca"], tls_files["client"], tls_files["client_key"])
            assert await get_model(cell.router.address, known) == "small"
            for unknown in (
                ClientTls(tls_files["server_ca"]),
                ClientTls(tls_files["server_ca"], tls_files["server"], tls_files["server_key"]),
            ):
                assert await refusal(get_model(cell.router.address, unknown)) is grpc.StatusCode.UNAVAILABLE

    run(test)


def test_certificates_change_while_the_router_runs(
    tmp_path: Path, tls_files: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with ready_cell(secure_config(tmp_path, tls_files)) as cell:
            address, former = cell.router.address, ClientTls(tls_files["server_ca"])
            assert await get_model(address, former) == "small"
            tls_files["server"].write_text("nothing of worth")
            assert await get_model(address, former) == "small"  # half of a change changes nothing
            assert "router.tls_cert" in caplog.text
            other_ca = trustme.CA()
            other_ca.cert_pem.write_to_path(tmp_path / "other-ca.crt")
            write_certificate(other_ca, tmp_path, "server")
            assert await get_model(address, ClientTls(tmp_path / "other-ca.crt")) == "small"
            assert await refusal(get_model(address, former)) is grpc.StatusCode.UNAVAILABLE
            call = asyncio.create_task(collect(cell.inference.Generate(generate_request("hi"))))
            await cell.attention[0].answer("on")  # open connections go on
            assert "".join(r.text for r in await call) == "on"

    run(test)


def test_a_workers_own_link_speaks_tls_and_brings_the_key(tmp_path: Path, tls_files: dict[str, Path]) -> None:
    (tmp_path / "operator").write_text("open-sesame\n")
    config = secure_config(tmp_path, tls_files, operator_key_file=tmp_path / "operator")
    join = join_message(control_pb2.ROLE_EXPERT, 0)
    tls = ClientTls(tls_files["server_ca"])

    async def test() -> None:
        async with started_router(config) as cell:
            address = cell.router.address
            with pytest.raises(ConfigError, match="refuses this worker: needs the operator's key"):
                await asyncio.to_thread(RouterLink.connect, address, join, 10.0, None, WorkerAccess(tls))
            key = (("authorization", "Bearer open-sesame"),)
            link = await asyncio.to_thread(RouterLink.connect, address, join, 10.0, None, WorkerAccess(tls, key))
            assert link.welcome.epoch == 1
            await asyncio.to_thread(link.close)

    run(test)


def test_the_operators_key_guards_cluster_and_workers_only(tmp_path: Path) -> None:
    (tmp_path / "operator").write_text("open-sesame\n")
    config = small_config(tmp_path, router={"port": 0, "operator_key_file": tmp_path / "operator"})

    async def test() -> None:
        async with ready_cell(config) as cell:
            cluster: Any = ClusterStub(cell.channel)
            for metadata in ((), (("x-api-key", "wrong-key"),)):
                call = cluster.GetStatus(control_pb2.GetStatusRequest(), metadata=metadata)
                assert await refusal(call) is grpc.StatusCode.UNAUTHENTICATED
            await cluster.GetStatus(control_pb2.GetStatusRequest(), metadata=(("x-api-key", "open-sesame"),))
            assert await get_model(cell.router.address, None) == "small"

    run(test)


def test_keys_open_inference_and_name_the_tenant(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keys = tmp_path / "keys"
    keys.write_text("# who may\nacme acme-key-1\nacme acme-key-2\nsmall small-key-1 0.5\n")
    config = small_config(tmp_path, router={"port": 0, "api_keys_file": keys})

    async def test() -> None:
        async with ready_cell(config, max_num_seqs=1) as cell:
            address, engine = cell.router.address, cell.router.engine
            for metadata in ([], [("x-api-key", "acme-key")], [("authorization", "Basic acme-key-1")]):
                assert await refusal(get_model(address, None, metadata)) is grpc.StatusCode.UNAUTHENTICATED
            assert await get_model(address, None, [("x-api-key", "small-key-1")]) == "small"
            running = cell.inference.Generate(generate_request(), metadata=(("authorization", "Bearer acme-key-1"),))
            await cell.attention[0].next("admit")
            waiting = cell.inference.Generate(generate_request(), metadata=(("authorization", "Bearer acme-key-2"),))
            await cell.until(lambda status: status.num_waiting == 1)
            assert (engine.num_waiting_of("acme"), engine.num_waiting_of("small")) == (1, 0)
            keys.write_text("acme acme-key-3\n")
            os.utime(keys, ns=(1, 1))
            assert await refusal(get_model(address, None, [("x-api-key", "small-key-1")])) is (
                grpc.StatusCode.UNAUTHENTICATED
            )
            assert await get_model(address, None, [("authorization", "bearer acme-key-3")]) == "small"
            running.cancel()
            waiting.cancel()

    run(test)
    assert "acme-key" not in caplog.text
    assert "small-key" not in caplog.text


def test_without_keys_a_gateway_may_name_the_tenant(tmp_path: Path) -> None:
    async def test() -> None:
        async with ready_cell(small_config(tmp_path), max_num_seqs=1) as cell:
            running = cell.inference.Generate(generate_request())
            await cell.attention[0].next("admit")
            calls = [
                cell.inference.Generate(
                    generate_request(request_id=name), metadata=(("x-tenant", "t"), ("x-priority", name))
                )
                for name in ("1", "2")
            ]
            await cell.until(lambda status: status.num_waiting == 2)
            assert cell.router.engine.num_waiting_of("t") == 2
            running.cancel()
            await cell.attention[0].next("abort")
            admitted = await cell.attention[0].next("admit")
            assert admitted.sequences[0].request_id.startswith("2#")
            for call in calls:
                call.cancel()

    run(test)


def test_reflection_can_be_switched_off(tmp_path: Path) -> None:
    async def listed(config: CellConfig) -> int:
        async with started_router(config) as cell:
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(cell.channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            async for response in stub.ServerReflectionInfo(iter([request])):
                return len(response.list_services_response.service)
        raise AssertionError("no answer")

    async def test() -> None:
        assert await listed(small_config(tmp_path)) > 3
        off = small_config(tmp_path, router={"port": 0, "reflection": False})
        assert await refusal(listed(off)) is grpc.StatusCode.UNIMPLEMENTED

    run(test)


def test_an_old_connection_makes_way_and_what_runs_on_it_goes_on(tmp_path: Path) -> None:
    config = small_config(tmp_path, router={"port": 0, "max_connection_age_s": 0.3})

    async def test() -> None:
        async with ready_cell(config) as cell:
            worker = cell.attention[0]
            call = cell.inference.Generate(generate_request())
            sequence = (await worker.next("admit")).sequences[0]
            await asyncio.sleep(1.0)  # well past the connection's age
            await worker.output(sequence.request_id, [65])
            assert (await call.read()).text == "A"
            assert await get_model(cell.router.address, None) == "small"
            call.cancel()

    run(test)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no key"),
        ("acme", "keys:1: expected TENANT KEY"),
        ("a b c d", "found 4 words"),
        ("acme short", "at least 8 characters, found 5"),
        ("acme long-enough-1 heavy", "a weight is a number above 0"),
        ("acme long-enough-1 -1", "found '-1'"),
        ("a same-key-1\nb same-key-1", "keys:2: the key of 'b' is another tenant's"),
    ],
)
def test_bad_key_files_are_refused_without_telling_a_key(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_keys(text, tmp_path / "keys")
    assert words in str(caught.value)
    assert not any(key in str(caught.value) for key in ("long-enough-1", "same-key-1"))


def test_a_key_file_that_breaks_leaves_the_former_keys(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys"
    with pytest.raises(ConfigError, match=r"router\.api_keys_file: cannot read"):
        KeysFile(path)
    path.write_text("acme long-enough-1 2\n")
    keys = KeysFile(path)
    assert keys.current().weights == {"acme": 2.0}
    path.write_text("acme\n")
    assert keys.current().tenant_of([("x-api-key", b"long-enough-1")]) == "acme"
    assert "the former stay" in caplog.text
    path.unlink()
    assert keys.current().weights == {"acme": 2.0}
    with pytest.raises(Unauthenticated):
        keys.current().tenant_of([("x-api-key", "long-enough-2")])


def test_settings_that_need_each_other_name_the_missing_one(tmp_path: Path) -> None:
    some = tmp_path / "some.pem"
    for values, field in (
        ({"tls_cert": some}, "router.tls_key"),
        ({"tls_key": some}, "router.tls_cert"),
        ({"tls_client_ca": some}, "router.tls_client_ca"),
    ):
        with pytest.raises(ConfigError, match=field):
            server_tls(small_config(tmp_path, router=values).router)
    complete = server_tls(small_config(tmp_path, router={"tls_cert": some, "tls_key": some}).router)
    assert complete == ServerTls(some, some)


def test_a_certificate_that_is_none_is_refused_at_the_start(tmp_path: Path, tls_files: dict[str, Path]) -> None:
    tls_files["server"].write_text("no certificate")
    with pytest.raises(ConfigError, match=r"router\.tls_cert: .* is not PEM"):
        Router(secure_config(tmp_path, tls_files), small_model(), new_registry())


def test_a_gateway_that_checks_keys_itself_can_be_let_in(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("acme long-enough-1\n")
    method = f"/{GATEWAY_SERVICE}/Generate"
    refused: list[MoonshardError] = []
    closed = small_config(tmp_path, router={"api_keys_file": tmp_path / "keys"})
    with pytest.raises(Unauthenticated):
        Guard(closed.router, refused.append).identify(method, ())
    assert len(refused) == 1
    opened = small_config(tmp_path, router={"api_keys_file": tmp_path / "keys", "open_gateway": True})
    guard = Guard(opened.router, refused.append)
    assert guard.identify(method, (("x-tenant", "theirs"),)).tenant == "theirs"
    with pytest.raises(Unauthenticated):
        guard.identify("/moonshard.v1.Inference/Generate", (("x-tenant", "theirs"),))
