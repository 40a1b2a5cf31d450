"""A real Prometheus over the processes of a test's cell."""

import json
import math
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moonshard_cluster.local.plan import free_port
from tests.tools import require_tool


def scrape(address: str) -> str:
    """A process's /metrics."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        text: str = response.read().decode()
        return text


@contextmanager
def running_prometheus(targets: Sequence[str], folder: Path, rules: Sequence[Path] = ()) -> Iterator[str]:
    """Scrapes the targets every second and evaluates the rules as often; its address."""
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in rules],
        "scrape_configs": [{"job_name": "moonshard", "static_configs": [{"targets": list(targets)}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        require_tool("prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield address
        finally:
            process.kill()


def query(address: str, expression: str) -> list[Any]:
    """The series of an instant query; OSError when Prometheus does not answer, also for a query it refuses."""
    url = f"http://{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=5) as response:
        result: list[Any] = json.load(response)["data"]["result"]
        return result


def has_data(address: str, expression: str) -> bool:
    """Whether some series has a number."""
    return any(math.isfinite(float(series["value"][1])) for series in query(address, expression))


def await_query(address: str, expression: str, wanted: float, limit_s: float = 30.0) -> None:
    """Ask until the answer is `wanted`: Prometheus offers no event to wait for."""
    deadline, seen = time.monotonic() + limit_s, "no answer"
    while time.monotonic() < deadline:
        try:
            found = query(address, expression)
            seen = found[0]["value"][1] if found else "nothing"
            if seen == f"{wanted:g}":
                return
        except OSError as error:
            seen = str(error)
        time.sleep(0.2)
    raise AssertionError(f"{expression}: wanted {wanted:g}, last saw {seen}")
