"""What processes answer to /livez and /readyz."""

import urllib.error
import urllib.request
from contextlib import closing

from moonshard.health import Health
from moonshard.metrics import new_registry, serve_metrics


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with closing(error):
            return error.code, error.read().decode()


def test_a_loop_that_stands_still_does_not_live_and_a_loading_process_does() -> None:
    now_s = [0.0]
    health = Health(10.0, lambda: now_s[0])
    now_s[0] = 1000.0
    assert health.liveness() == ""
    health.beat()
    now_s[0] = 1010.0
    assert health.liveness() == ""
    now_s[0] = 1011.0
    assert health.liveness() == "no turn of the loop for 11 s, 10 are allowed"
    health.beat()
    assert health.liveness() == ""


def test_probes_answer_beside_metrics() -> None:
    health = Health(10.0)
    probes = {"/livez": health.liveness, "/readyz": lambda: health.readiness()}
    server = serve_metrics(new_registry(), "127.0.0.1", 0, probes)
    try:
        base = f"http://{server.address}"
        assert get(f"{base}/livez") == (200, "ok\n")
        assert get(f"{base}/readyz") == (503, "is starting\n")
        health.readiness = lambda: ""
        assert get(f"{base}/readyz") == (200, "ok\n")
        status, text = get(f"{base}/metrics")
        assert status == 200
        assert "process_cpu_seconds_total" in text
    finally:
        server.close()
