"""The command line's certificates and keys reach the router: the real command, a router behind mutual TLS and a key."""

import asyncio
import sys
from pathlib import Path

import trustme

from tests.unit.router.router_peers import ready_cell, run, small_config


async def command(*arguments: str) -> tuple[int | None, str]:
    """Exit status and what it said on standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "moonshard_cluster.cli", *arguments,
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, said = await process.communicate()
    return process.returncode, said.decode()


def test_a_command_brings_what_it_was_given(tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    issued.private_key_pem.write_to_path(tmp_path / "router.key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "router.crt")
    (tmp_path / "operator").write_text("key-of-the-operator")
    files = {name: tmp_path / name for name in ("ca.crt", "router.crt", "router.key", "operator")}
    router = {
        "port": 0, "tls_cert": files["router.crt"], "tls_key": files["router.key"], "tls_ca": files["ca.crt"],
        "tls_client_ca": files["ca.crt"], "operator_key_file": files["operator"],
    }  # fmt: skip
    tls = ["--tls-ca", "ca.crt", "--tls-cert", "router.crt", "--tls-key", "router.key"]
    told = [str(files[it]) if it in files else it for it in tls]

    async def test() -> None:
        async with ready_cell(small_config(tmp_path, router=router)) as peers:
            status = ("status", "--router", peers.router.address)
            found = await asyncio.gather(
                command(*told, "--operator-key-file", str(files["operator"]), *status),
                command(*told, *status),
                command(*status),
            )
        assert found[0] == (0, "")
        assert found[1][0] == 1
        assert "operator" in found[1][1]
        assert found[2][0] == 1
        assert "Traceback" not in found[2][1]

    run(test)
