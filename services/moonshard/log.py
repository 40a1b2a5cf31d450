"""One log format for every process: time, level, role, message."""

import logging
import sys


def setup(role: str, level: str = "INFO") -> None:
    """Log to standard error as `2026-01-01 12:00:00,000 INFO expert-3: message`."""
    logging.basicConfig(
        level=level,
        stream=sys.stderr,
        format=f"%(asctime)s %(levelname)s {role}: %(message)s",
        force=True,
    )
