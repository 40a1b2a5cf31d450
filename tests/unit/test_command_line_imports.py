"""The command works in the router's image, which has neither torch nor ray."""

import subprocess
import sys

import moonshard

BLOCKED = ("torch", "ray", "safetensors", "smg", "transformers")
PROGRAM = f"""
import sys
sys.modules.update(dict.fromkeys({BLOCKED!r}))
from moonshard_cluster.cli import main
main()
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_line_needs_no_torch() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"moonshard {moonshard.__version__}\n"), done.stderr


def test_commands_that_only_ask_need_no_torch_either() -> None:
    done = run("status", "--router", "127.0.0.1:1")
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr


def test_the_gateway_of_a_pod_needs_no_torch_either() -> None:
    modules = "moonshard_cluster.chart.gateway, moonshard_cluster.local.gateway_program"
    program = f"import sys; sys.modules.update(dict.fromkeys({BLOCKED[:3]!r}))\nimport {modules}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
