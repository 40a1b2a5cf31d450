"""Repacked experts in a file: a restarted shard maps it and is ready, and shards on one host share its pages.

One file for each (weights, range of experts). Its name holds a fingerprint of the checkpoint's files and of the
layout, so that a changed checkpoint is repacked anew. Knows nothing of what the panels mean.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from torch import Tensor

from moonshard.errors import ConfigError

LAYOUT = "panels-1"  # of kernels/native/layout.h; a new number leaves old files unused
SETTING = "experts.repacked_cache"


def cached_path(folder: Path, fingerprint: str, experts: range, num_slots: int | None = None) -> Path:
    """Where the panels of these experts belong, with memory for num_slots in each layer if it is more than theirs."""
    name = hashlib.sha256(f"{LAYOUT}:{fingerprint}".encode()).hexdigest()[:32]
    slots = f"-of-{num_slots}" if num_slots and num_slots > len(experts) else ""
    return folder / f"{name}-{experts.start}-{experts.stop}{slots}.panels"


def open_cached(path: Path, num_bytes: int) -> Tensor | None:
    """The file's bytes, mapped, or None where there is no whole one. Writing to them does not change the file."""
    try:
        if path.stat().st_size != num_bytes:
            return None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(SETTING, f"cannot read {path}: {error.strerror}") from None
    return torch.from_file(str(path), shared=False, size=num_bytes, dtype=torch.uint8)


@contextmanager
def new_cached(path: Path, num_bytes: int) -> Iterator[Tensor]:
    """Bytes to fill, which become the file when the block ends well. Raises ConfigError when there is no room.

    The tensor stays valid afterwards. Two processes may fill the same file at once: each has a draft of its own, and
    the last one stays.
    """
    draft = path.with_suffix(f".{os.getpid()}.draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_dead_drafts(path)
        with draft.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise ConfigError(SETTING, f"cannot write {num_bytes} bytes to {path}: {error.strerror}") from None
    try:
        yield torch.from_file(str(draft), shared=True, size=num_bytes, dtype=torch.uint8)
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.rename(path)
    finally:
        draft.unlink(missing_ok=True)


def _remove_dead_drafts(path: Path) -> None:
    """Drafts of processes that were killed while they filled them."""
    for draft in path.parent.glob(f"{path.stem}.*.draft"):
        if not psutil.pid_exists(int(draft.suffixes[-2].removeprefix("."))):
            draft.unlink(missing_ok=True)
