"""The attention worker's own engine on native kernels, with all experts in its process; for benchmarks."""

from pathlib import Path

import torch

from moonshard.attention.engine import Engine
from moonshard.attention.kv_cache import LatentCache
from moonshard.attention.runner import Runner
from moonshard.attention.scheduler import Scheduler
from moonshard.config import AttentionConfig
from moonshard.kernels import Pool, Precision
from moonshard.kernels.attention import Activations
from moonshard.model.checkpoint import Checkpoint
from moonshard.model.config import ModelConfig
from moonshard.model.moe import LocalExperts
from moonshard.model.native_decoder import NativeDecoder
from moonshard.model.native_experts import load_native_stacks
from moonshard.model.weights import load_weights


def native_engine(
    path: Path,
    activations: Activations,
    precision: Precision,
    cache_dtype: torch.dtype,
    limits: AttentionConfig,
    num_threads: int,
) -> Engine:
    config, pool, device = ModelConfig.from_dir(path), Pool(num_threads), torch.device("cpu")
    with Checkpoint(path, config) as checkpoint:
        weights = load_weights(checkpoint, torch.bfloat16)
        stacks = load_native_stacks(checkpoint, range(config.n_routed_experts), pool, precision)
    decoder = NativeDecoder(config, weights, LocalExperts(stacks), pool, None, activations)  # type: ignore[arg-type]
    shape = config.num_hidden_layers, limits.num_blocks, limits.block_size, config.latent_dim
    return Engine(Scheduler(limits), Runner(decoder, LatentCache(*shape, cache_dtype, device), device))
