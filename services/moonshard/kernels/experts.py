"""The routed experts of one layer in the kernels' own INT4 layout."""

from typing import Literal

import torch

from moonshard.kernels.library import FLOATS, TYPES, check, native, row_stride
from moonshard.kernels.pool import Pool

Precision = Literal["int8", "int16", "exact"]

_GROUP = 32  # inputs that share a scale, and outputs of a panel
_STEP_BYTES = 576  # of a panel for each group; native/layout.h
PRECISIONS: dict[Precision, int] = {"int8": 0, "exact": 1, "int16": 2}


def panels_bytes(num_experts: int, width: int, hidden: int) -> int:
    """What the experts of one layer take; a multiple of a cache line."""
    per_group = 2 * hidden // _GROUP * (width // _GROUP) + width // _GROUP * (hidden // _GROUP)
    return num_experts * per_group * _STEP_BYTES


class Int4Experts:
    """Experts first_expert .. first_expert + num_experts of one layer: down(silu(gate x) * up x).

    Shape suffixes: R rows, D width (the model's), K slots of the routing table. `hidden` is the experts' inner size.
    Takes the published size: 4 bits for each weight and 16 for each scale.
    """

    def __init__(
        self, first_expert: int, num_experts: int, width: int, hidden: int, panels: torch.Tensor | None = None
    ) -> None:
        """panels: uint8 memory of `panels_bytes` to use, filled or to be filled; fresh memory when None. ValueError."""
        for name, size in (("width", width), ("hidden", hidden)):
            if size <= 0 or size % _GROUP:
                raise ValueError(f"{name}: expected a multiple of {_GROUP}, found {size}")
        self.first_expert, self.num_experts = first_expert, num_experts
        self.width, self.hidden = width, hidden
        self._in_panel = width // _GROUP * _STEP_BYTES
        self._down_panel = hidden // _GROUP * _STEP_BYTES
        self._down_offset = 2 * hidden // _GROUP * self._in_panel
        self._expert_bytes = self._down_offset + width // _GROUP * self._down_panel
        num_bytes = panels_bytes(num_experts, width, hidden)
        if panels is None:
            panels = torch.empty(num_bytes, dtype=torch.uint8)
            native().ms_advise_huge(panels.data_ptr(), num_bytes)
        _check_matrix("panels", panels, torch.uint8, (num_bytes,))
        self._panels = panels

    def touch(self, pool: Pool) -> None:
        """Read all of it once: what is mapped from a file comes into memory now, not with the first rows."""
        native().ms_read_all(pool.handle, self.address, self.resident_bytes)

    @property
    def resident_bytes(self) -> int:
        """Bytes of all weights and scales."""
        return self._panels.numel()

    @property
    def address(self) -> int:
        """Where the panels lie."""
        return self._panels.data_ptr()

    def memory_of(self, slot: int) -> torch.Tensor:
        """The bytes of one expert, by its place here."""
        return self._panels[slot * self._expert_bytes : (slot + 1) * self._expert_bytes]

    def load(self, pool: Pool, expert: int, name: str, packed: torch.Tensor, scale: torch.Tensor) -> None:
        """Repack one published matrix, `name` "gate", "up" or "down": `packed` int32 [out, in / 8] (lowest nibble
        first, stored as q + 8), `scale` bfloat16 [out, in / 32]; both contiguous. `expert` logical. ValueError.
        """
        local = expert - self.first_expert
        if not 0 <= local < self.num_experts:
            raise ValueError(
                f"expert: expected {self.first_expert}..{self.first_expert + self.num_experts - 1}, found {expert}"
            )
        offset, stride = self._place(name)
        outputs, inputs = (self.width, self.hidden) if name == "down" else (self.hidden, self.width)
        _check_matrix(f"{name} packed", packed, torch.int32, (outputs, inputs // 8))
        _check_matrix(f"{name} scale", scale, torch.bfloat16, (outputs, inputs // _GROUP))
        target = self._panels.data_ptr() + local * self._expert_bytes + offset
        check(native().ms_repack(pool.handle, packed.data_ptr(), scale.data_ptr(), outputs, inputs, target, stride))

    def forward(
        self,
        pool: Pool,
        x_RD: torch.Tensor,
        topk_ids_RK: torch.Tensor,
        topk_weights_RK: torch.Tensor,
        out_RD: torch.Tensor | None = None,
        precision: Precision = "int8",
        slots_E: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Weighted sum of the experts here that each row asks for, float32 [R, D], in ascending order of experts.

        x float32 or bfloat16 with rows at any stride; ids int32 or int64, logical, others' and -1 skipped; weights
        float32; both contiguous. `out_RD`: float32, rows at any stride, must not overlap x. An infinity or a NaN
        makes its row NaN. ValueError for other shapes or types.

        slots_E: int32, where each logical expert lies, -1: not here. Then the outputs stay apart: [P, D], one for each
        id that is not -1, in their order, and NaN for an expert that is not here.
        """
        rows, slots = topk_ids_RK.shape
        x_stride = row_stride("x", x_RD, FLOATS, self.width)
        wide = topk_ids_RK.dtype == torch.int64
        _check_matrix("topk_ids", topk_ids_RK, torch.int64 if wide else torch.int32, (rows, slots))
        _check_matrix("topk_weights", topk_weights_RK, torch.float32, (rows, slots))
        num_sums = rows if slots_E is None else int((topk_ids_RK >= 0).sum())
        first, num_experts, local = self.first_expert, self.num_experts, None
        if slots_E is not None:
            _check_matrix("slots", slots_E, torch.int32, (len(slots_E),))
            first, num_experts, local = 0, len(slots_E), slots_E.data_ptr()
        y_RD = torch.empty(num_sums, self.width) if out_RD is None else out_RD
        y_stride = row_stride("out", y_RD, (torch.float32,), self.width)
        if rows != x_RD.shape[0] or num_sums != y_RD.shape[0]:
            raise ValueError(f"rows: {rows} in topk_ids, {x_RD.shape[0]} in x, {y_RD.shape[0]} for {num_sums} in out")
        # fmt: off
        check(native().ms_experts(
            pool.handle, self._panels.data_ptr(), self.width, self.hidden, first, num_experts,
            x_RD.data_ptr(), TYPES[x_RD.dtype], x_stride, rows, topk_ids_RK.data_ptr(), wide,
            topk_weights_RK.data_ptr(), slots, y_RD.data_ptr(), y_stride, PRECISIONS[precision],
            local, slots_E is not None,
        ))
        # fmt: on
        return y_RD

    def _place(self, name: str) -> tuple[int, int]:
        """Bytes from the expert's start to the matrix's first panel, and from panel to panel."""
        places = {
            "gate": (0, 2 * self._in_panel),
            "up": (self._in_panel, 2 * self._in_panel),
            "down": (self._down_offset, self._down_panel),
        }
        if name not in places:
            raise ValueError(f"name: expected gate, up or down, found {name!r}")
        return places[name]


def _check_matrix(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tuple(tensor.shape) != shape:
        raise ValueError(f"{name}: expected {dtype} {list(shape)}, found {tensor.dtype} {list(tensor.shape)}")
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError(f"{name}: expected a contiguous tensor on the CPU")
