"""Where demo checkpoints are kept between runs, so that `moonshard up` makes the default one only once."""

import dataclasses
import hashlib
import json
from pathlib import Path

from moonshard.errors import CheckpointError, ConfigError
from moonshard_cluster.cache import cache_dir
from moonshard_cluster.demo.checkpoint import Progress, write_demo
from moonshard_cluster.demo.spec import DemoSpec
from moonshard_cluster.demo.vocabulary import TEMPLATE, TRAINED_MODEL, tokenizer_config

# Raise it when the same DemoSpec gives other bytes.
FORMAT_VERSION = 1


def default_demo_dir(spec: DemoSpec | None = None) -> Path:
    """Where `ensure_demo` keeps a checkpoint: demo/NAME-FINGERPRINT in the cache."""
    spec = spec or DemoSpec.small()
    return cache_dir() / "demo" / f"{spec.name}-{fingerprint(spec)}"


def fingerprint(spec: DemoSpec) -> str:
    """Twelve hex digits that change with anything that changes the checkpoint."""
    files = [spec.config_json(), spec.generation_json(), tokenizer_config(spec.special_base)]
    described = [FORMAT_VERSION, dataclasses.asdict(spec), *files]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    digest.update(TRAINED_MODEL.read_bytes() + TEMPLATE.read_bytes())
    return digest.hexdigest()[:12]


def ensure_demo(spec: DemoSpec, progress: Progress | None = None) -> Path:
    """The cached checkpoint of `spec`, written first if absent. Safe when several processes ask at once."""
    path = default_demo_dir(spec)
    if not path.exists():
        try:
            write_demo(path, spec, progress)
        except (CheckpointError, ConfigError):
            # Checkpoints appear whole, so a directory that is there now is another process's finished one.
            if not path.exists():
                raise
    return path
