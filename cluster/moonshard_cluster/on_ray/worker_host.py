"""What runs inside a Ray actor: one ordinary worker program, its log, and its end. Knows nothing of Ray.

Ray restarts the actor when its node dies; when the program dies, the actor dies with it, so that there is one way back.
"""

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from moonshard.config import CellConfig
from moonshard.process import USER_ERROR_STATUS

PROGRAMS = {"expert": "moonshard.experts", "attention": "moonshard.attention"}
LOG_BYTES_MAX = 1 << 20


class WorkerHost:
    """The methods of the actor. Several may run at once."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="moonshard-"))
        self._log = self._folder / "log"
        self._log.touch()

    def run(self, role: str, rank: int, config_json: str, router_address: str) -> int:
        """Run the worker to its end; its exit status. Any other end than an ordered one ends this process, too."""
        config = CellConfig.model_validate_json(config_json).model_copy(update={"run_dir": self._folder / "run"})
        path = self._folder / "cell.json"
        path.write_text(config.model_dump_json())
        command = [sys.executable, "-m", PROGRAMS[role], "--config", str(path), "--rank", str(rank), "--lifeline"]
        command += ["--router", router_address, "--advertise", local_address(router_address)]
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        # Its standard input closes with this process, however that ends: its lifeline.
        with (
            self._log.open("ab") as log,
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment) as process,
        ):
            status = process.wait()
        if status not in (0, USER_ERROR_STATUS):
            os._exit(1)
        return status

    def read_log(self, pid: int, offset: int) -> tuple[int, bytes]:
        """(pid of this host, what its worker has logged from `offset` on, at most a mebibyte).

        The offset counts in the log of the host that had `pid`; a restarted one begins anew.
        """
        with self._log.open("rb") as log:
            log.seek(offset if pid == os.getpid() else 0)
            return os.getpid(), log.read(LOG_BYTES_MAX)

    def meeting_point(self, router_address: str) -> str:
        """host:port of this node where the ranks of a collective group may meet; free just now."""
        host = local_address(router_address)
        with socket.socket() as probe:
            probe.bind((host, 0))
            return f"{host}:{probe.getsockname()[1]}"


def local_address(toward: str) -> str:
    """The address of this machine that others on the way to host:port can use. Sends nothing."""
    host, _, port = toward.rpartition(":")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host.strip("[]"), int(port)))
        address = probe.getsockname()[0]
    assert isinstance(address, str)
    return address
