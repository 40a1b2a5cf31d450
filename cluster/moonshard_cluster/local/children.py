"""What runs inside a worker process that the fork server hands out, torch already imported."""

import multiprocessing
import os
import sys
from pathlib import Path

from moonshard.config import CellConfig


def run_worker(role: str, rank: int, config_path: Path, router_address: str, log_path: Path) -> None:
    """Target of a worker's process."""
    _log_to(log_path)
    from moonshard.attention.worker import serve as serve_attention
    from moonshard.experts.worker import serve as serve_expert
    from moonshard.worker import WorkerArguments, run

    serve = serve_attention if role == "attention" else serve_expert
    arguments = WorkerArguments(CellConfig.read(config_path), rank, router_address, _lifeline())
    sys.exit(run(role, serve, arguments))


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
