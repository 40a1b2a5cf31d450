"""A program of its own beside the launcher, held by a lifeline."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class Program:
    """`python -m MODULE ARGUMENTS`, with the part of multiprocessing's Process interface that the supervisor uses.

    own_group: whether Ctrl-C at the terminal passes it by.
    """

    def __init__(self, module: str, arguments: Sequence[str], log_path: Path, own_group: bool = False) -> None:
        # The child inherits the writing end and so closes it however it dies.
        self.sentinel, held_by_child = os.pipe()
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                # Our end of its standard input closes however we die: its lifeline.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[held_by_child],
                process_group=0 if own_group else None,
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
