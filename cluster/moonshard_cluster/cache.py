"""Where the command line keeps what it makes for itself: demo checkpoints and logs."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """~/.cache/moonshard; XDG_CACHE_HOME moves it, if absolute as its standard demands."""
    configured = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (configured if configured.is_absolute() else Path.home() / ".cache") / "moonshard"
