"""Muon for the hidden matrices, AdamW for embedding, head and norms (arXiv 2502.16982, 2507.20534).

Legend: O out, I in; leading axes are matrices of their own (one per expert).
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from moonshard.training.parameters import Matrix, Parameters

Each = Callable[[Callable[[Matrix], None], Iterable[Matrix]], Iterable[None]]

_NS_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NS_STEPS = 5
# Makes the root mean square of an update what AdamW's would be, so that both share a scale of learning rates.
_UPDATE_RMS = 0.2


def orthogonalise(g_OI: Tensor) -> Tensor:
    """Nearly U V^T of g's singular value decomposition: singular values end between about 0.7 and 1.2.

    Computed in BF16: the iteration forgives rounding.
    """
    tall = g_OI.shape[-2] > g_OI.shape[-1]
    x: Tensor = (g_OI.mT if tall else g_OI).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _NS_COEFFICIENTS
    for _ in range(_NS_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(g_OI.dtype)


class MuonAdamW:
    """Both optimisers over one model's parameters. Call `step` after backward; gradients are cleared."""

    def __init__(self, parameters: Parameters, momentum: float, weight_decay: float) -> None:
        self._matrices = list(parameters.matrices())
        self._momentum, self._decay = momentum, weight_decay
        self._buffers = {m.name: torch.zeros_like(m.tensor, requires_grad=False) for m in self._matrices}
        others = [tensor for _, tensor in parameters.others()]
        self._adam = torch.optim.AdamW(others, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0)

    @torch.no_grad()
    def step(self, muon_lr: float, adam_lr: float, each: Each = map) -> None:
        """`each` may be a pool's map: matrices move independently of one another."""
        list(each(partial(self._move, lr=muon_lr), self._matrices))
        for group in self._adam.param_groups:
            group["lr"] = adam_lr
        self._adam.step()
        self._adam.zero_grad()

    @torch.no_grad()
    def _move(self, matrix: Matrix, lr: float) -> None:
        grad = matrix.tensor.grad
        assert grad is not None, f"{matrix.name} has no gradient"
        buffer = self._buffers[matrix.name].mul_(self._momentum).add_(grad)
        nesterov = grad.add_(buffer, alpha=self._momentum)
        matrix.tensor.mul_(1 - lr * self._decay)
        parts = (torch.split_with_sizes(x, matrix.parts, -2) for x in (nesterov, matrix.tensor))
        for part, target in zip(*parts, strict=True):
            target.add_(orthogonalise(part), alpha=-lr * _UPDATE_RMS * max(part.shape[-2:]) ** 0.5)
        matrix.tensor.grad = None

    def state(self) -> dict[str, Any]:
        return {"buffers": self._buffers, "adam": self._adam.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        for name, buffer in self._buffers.items():
            buffer.copy_(state["buffers"][name])
        self._adam.load_state_dict(state["adam"])
