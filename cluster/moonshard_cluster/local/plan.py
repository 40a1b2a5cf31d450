"""From what the user asked to the complete configuration of a cell on this machine: every "auto" resolved."""

import importlib.resources
import os
import runpy
import socket
import tempfile
from pathlib import Path
from typing import Any

from moonshard.config import CellConfig, read_values
from moonshard.model.config import ModelConfig
from moonshard.topology import Topology


def plan_cell(values: dict[str, Any], file: Path | None = None) -> CellConfig:
    """Check `values` (flags) over those of `file`, and the checkpoint's config.json against them.

    The cell gets a run directory of its own. Raises ConfigError or CheckpointError before any process starts.
    """
    base = read_values(file) if file else {}
    config = CellConfig.build(_merge(base, values))
    model = ModelConfig.from_dir(config.checkpoint)
    topology = Topology(model.n_routed_experts, config.num_shards, config.num_attention, config.num_replicas)
    device = _device(config, topology)
    # Attention and experts of one sequence take turns, so each kind may count on all cores for itself.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return config.model_copy(
        update={
            "checkpoint": config.checkpoint.resolve(),
            "model_name": config.model_name or config.checkpoint.resolve().name,
            "run_dir": Path(tempfile.mkdtemp(prefix="moonshard-")),
            "collective_address": f"127.0.0.1:{free_port()}",
            "device": device,
            "dtype": config.dtype if config.dtype != "auto" else _dtype(config, device),
            "attention": config.attention.model_copy(
                update={"num_threads": config.attention.num_threads or max(1, cores // topology.num_attention)}
            ),
            "experts": config.experts.model_copy(
                update={"num_threads": config.experts.num_threads or max(1, cores // topology.num_shards)}
            ),
        }
    )


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins, section by section; None means not given."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict):
            section = base.get(key, {})
            # What is no section is left for the check, which names it.
            merged[key] = _merge(section, value) if isinstance(section, dict) else section
        elif value is not None:
            merged[key] = value
    return merged


def _device(config: CellConfig, topology: Topology) -> str:
    """CUDA only when every rank can own a device and the transport can use it. Never run on one so far."""
    if config.device != "auto" or config.transport != "all_to_all":
        return "cpu" if config.device == "auto" else config.device
    import torch

    return "cuda" if torch.cuda.device_count() >= topology.world_size else "cpu"


def _dtype(config: CellConfig, device: str) -> str:
    """BF16 activations where CUDA or the native kernels compute; torch's operators on CPUs are better off with FP32."""
    return "bfloat16" if device == "cuda" or (config.kernels != "torch" and kernels_are_built()) else "float32"


def kernels_are_built() -> bool:
    """Whether the native CPU kernels were compiled.

    Asked of the build script as the installer runs it: importing the package would load torch into the launcher.
    """
    script = importlib.resources.files("moonshard") / "kernels" / "build.py"
    return bool(runpy.run_path(str(script))["is_current"]())


def free_port() -> int:
    """A port of the loopback interface that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert isinstance(port, int)
    return port
