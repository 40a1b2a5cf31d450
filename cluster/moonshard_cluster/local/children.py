"""What runs inside a child process of the local launcher: its log file, its role's program, and tidying up.

The fork server hands out workers with torch already imported; the router is a fresh interpreter that never sees torch.
"""

import contextlib
import multiprocessing
import os
import sys
from pathlib import Path

from moonshard.config import CellConfig


def run_router(config_path: Path, run_dir: Path, log_path: Path) -> None:
    """Target of the router's process; ends it with the program's exit status."""
    _log_to(log_path)
    from moonshard.router.process import run

    try:
        status = run(CellConfig.read(config_path), lifeline=_lifeline())
    finally:
        _leave(run_dir)
    sys.exit(status)


def run_worker(role: str, rank: int, config_path: Path, router_address: str, run_dir: Path, log_path: Path) -> None:
    """Target of a worker's process."""
    _log_to(log_path)
    from moonshard.attention.worker import serve as serve_attention
    from moonshard.experts.worker import serve as serve_expert
    from moonshard.worker import WorkerArguments, run

    serve = serve_attention if role == "attention" else serve_expert
    try:
        status = run(role, serve, WorkerArguments(CellConfig.read(config_path), rank, router_address, _lifeline()))
    finally:
        _leave(run_dir)
    sys.exit(status)


def _log_to(path: Path) -> None:
    """Send standard output and error to a file; the launcher shows its last lines when the process dies."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def _lifeline() -> int:
    parent = multiprocessing.parent_process()
    assert parent is not None, "children are started by the launcher"
    return parent.sentinel


def _leave(run_dir: Path) -> None:
    """The last process out removes the run directory, which matters when the launcher itself was killed."""
    with contextlib.suppress(OSError):
        run_dir.rmdir()
