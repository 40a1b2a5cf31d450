"""The one gate: format, lint, types, layers, generated stubs, metrics tools, tests. CI runs it and nothing else.

.venv/bin/python tests/gate.py            everything
.venv/bin/python tests/gate.py --quick    without the tests marked slow
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The whole gate ends by itself, whatever hangs inside it.
STEP_LIMIT_S = 40 * 60.0
PICTURES = ["tests/board_pictures.py", "tests/specialisation_pictures.py", "tests/readme_recording.py"]
BUF = "@bufbuild/buf@1.75.0"
PROMETHEUS = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "prometheus"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Run every check of the project.")
    parser.add_argument("--quick", action="store_true", help="leave out the tests marked slow")
    quick = parser.parse_args().quick
    _install_prometheus()
    _install_buf()
    _fetch_helm()
    steps = {
        "format": ["ruff", "format", "--check", "--quiet", "."],
        "lint": ["ruff", "check", "--quiet", "."],
        "types": ["mypy"],
        "types of the tools": ["mypy", "--explicit-package-bases", "tests/benchmarks", *PICTURES],
        "layers": ["lint-imports"],
        "stubs in step with protos": ["bash", "tests/protos.sh", "--check"],
        "tests": ["pytest", "-q", "--durations=10", *(["-m", "not slow"] if quick else [])],
    }
    for name, command in steps.items():
        if status := _run(name, command):
            return status
    return 0


def _run(name: str, command: list[str]) -> int:
    """Run one step with this interpreter's programs first on the path; its exit status."""
    started = time.monotonic()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # Two cores run up to ten processes here: more threads only make them wait for each other.
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    is_tests = command[0] == "pytest"
    # The tests' closing line must be the last thing printed.
    _say(f"--- {name}")
    done = subprocess.run(
        command, cwd=ROOT, env=environment, timeout=STEP_LIMIT_S, capture_output=not is_tests, text=True, check=False
    )
    if done.returncode and not is_tests:
        _say(done.stdout + done.stderr)
    if done.returncode:
        _say(f"failed: {name}, exit status {done.returncode}")
    elif not is_tests:
        _say(f"    ok, {time.monotonic() - started:.1f} s")
    return done.returncode


def _install_prometheus() -> None:
    """The tests of metrics drive a real Prometheus; where it cannot be installed they are skipped and say so."""
    if shutil.which("promtool") and shutil.which("prometheus"):
        return
    if not shutil.which("apt-get") or os.geteuid() != 0:
        _say("promtool and prometheus are not installed: the tests that need them will be skipped")
        return
    for command in (["apt-get", "update", "-qq"], PROMETHEUS):
        subprocess.run(command, timeout=300, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _fetch_helm() -> None:
    """The chart's tests render with Helm 3 and 4; where they cannot be had those tests are skipped and say so."""
    command = [sys.executable, "tests/fetch_helm.py"]
    if subprocess.run(command, cwd=ROOT, timeout=300, check=False, stderr=subprocess.DEVNULL).returncode:
        _say("Helm could not be fetched: the tests of the chart will be skipped")


def _install_buf() -> None:
    """One test calls the services with buf curl; without npm it is skipped and says so."""
    prefix = Path(sys.prefix) / "lib" / "moonshard-tools"
    if shutil.which("buf") or (prefix / "node_modules" / ".bin" / "buf").exists():
        return
    if not shutil.which("npm"):
        _say("npm is not installed: the test that needs buf will be skipped")
        return
    command = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(prefix), BUF]
    subprocess.run(command, timeout=120, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
