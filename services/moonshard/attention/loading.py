"""The attention role's part of the model, on native kernels where they are built, else on torch's operators."""

import logging
import time
from typing import Any

import torch
from torch import Tensor

from moonshard.attention.link_metrics import PhaseTimes
from moonshard.attention.routing_trace import RoutingTrace
from moonshard.kernels.attention import Activations
from moonshard.model.checkpoint import Checkpoint
from moonshard.model.decoder import Decoder
from moonshard.model.inventory import attention_tensors
from moonshard.model.native_decoder import NativeDecoder
from moonshard.model.weights import StreamedWeights, load_weights
from moonshard.transport.contract import Dispatcher
from moonshard.worker import Worker, native_pool

logger = logging.getLogger(__name__)

_ACTIVATIONS: dict[torch.dtype, Activations] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class LateDispatcher:
    """Stands in the model for the dispatcher, which can connect only when every shard has loaded as well.

    times: of its calls. trace: writes down the routing of traced sequences.
    """

    def __init__(self) -> None:
        self.target: Dispatcher | None = None
        self.times = PhaseTimes()
        self.trace: RoutingTrace | None = None

    def dispatch(self, layer: int, x_TD: Tensor, topk_ids_TK: Tensor, topk_weights_TK: Tensor) -> Any:
        assert self.target is not None, "the model runs after it has met the shards"
        started = time.perf_counter()
        handle = self.target.dispatch(layer, x_TD, topk_ids_TK, topk_weights_TK)
        self.times.dispatch.observe(time.perf_counter() - started)
        if self.trace and self.trace.is_watching:
            self.trace.dispatched(layer, topk_ids_TK)
        return handle

    def combine(self, handle: Any) -> Tensor:
        assert self.target is not None, "a handle comes from a dispatch"
        started = time.perf_counter()
        y_TD = self.target.combine(handle)
        took_s = time.perf_counter() - started
        self.times.combine.observe(took_s)
        if self.trace and self.trace.is_watching:
            self.trace.combined(took_s)
        return y_TD


def load_decoder(worker: Worker, routed: LateDispatcher) -> Decoder | NativeDecoder:
    """Read this role's tensors, none of the routed experts. Raises CheckpointError or ConfigError."""
    pool = native_pool("attention", worker.config, worker.device)
    eps, progress = worker.config.latent_norm_eps, worker.progress.loaded
    decoder: Decoder | NativeDecoder
    with Checkpoint(worker.config.checkpoint, worker.model) as checkpoint:
        if pool and _is_bf16(checkpoint):
            streamed = StreamedWeights(checkpoint, torch.bfloat16, progress)
            decoder = NativeDecoder(worker.model, streamed, routed, pool, eps, _ACTIVATIONS[worker.dtype])
        else:
            weights = load_weights(checkpoint, worker.dtype, worker.device, progress)
            decoder = Decoder(worker.model, weights, routed, eps)
    logger.info("loaded attention, gate and shared experts: %d bytes read", checkpoint.bytes_read)
    return decoder


def _is_bf16(checkpoint: Checkpoint) -> bool:
    """Whether BF16 holds every linear weight exactly; the gate and its bias stay FP32 in any case."""
    linear = (spec for spec in attention_tensors(checkpoint.config) if ".mlp.gate." not in spec.name)
    return all(checkpoint.stored_dtype(spec) == torch.bfloat16 for spec in linear)
