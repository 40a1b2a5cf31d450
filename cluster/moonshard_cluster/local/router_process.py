"""The router as a program of its own: a fresh interpreter that never sees torch."""

import os
import subprocess
import sys
from pathlib import Path


class RouterProcess:
    """`python -m moonshard.router`, with the part of multiprocessing's Process interface that the supervisor uses."""

    def __init__(self, config_path: Path, log_path: Path) -> None:
        # The child inherits the writing end and so closes it however it dies.
        self.sentinel, held_by_child = os.pipe()
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moonshard.router", "--config", str(config_path), "--lifeline"],
                # Our end of its standard input closes however we die: its lifeline.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[held_by_child],
            )
        os.close(held_by_child)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def join(self, timeout: float) -> None:
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        os.close(self.sentinel)
