"""run_dir/router.json: where this router answers, for the launcher and the command line. Present while it serves."""

import json
import os
from pathlib import Path

from moonshard.errors import ConfigError

NAME = "router.json"
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "[::1]"}


def reachable(host: str, port: int) -> str:
    """host:port that a process of this machine can connect to."""
    return f"{WILDCARDS.get(host, host)}:{port}"


def write_run_file(run_dir: Path, address: str, metrics_address: str) -> Path:
    """Appears whole or not at all. Returns its path. Raises ConfigError when the folder cannot be written."""
    path, draft = run_dir / NAME, run_dir / f".{NAME}.{os.getpid()}"
    content = {"address": address, "metrics_address": metrics_address, "pid": os.getpid()}
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(content) + "\n")
        draft.replace(path)
    except OSError as error:
        raise ConfigError("run_dir", f"cannot write {path}: {error.strerror}") from None
    return path
