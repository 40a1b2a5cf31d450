"""The router as a program of its own: a fresh interpreter that never sees torch."""

from pathlib import Path

from moonshard_cluster.local.program import Program


class RouterProcess(Program):
    def __init__(self, config_path: Path, log_path: Path) -> None:
        super().__init__("moonshard.router", ["--config", str(config_path), "--lifeline"], log_path)
