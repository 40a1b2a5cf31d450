"""From the rows of a handle to messages: which shard gets which, and one DISPATCH for each.

Shapes: T rows of a step, K experts per token.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from moonshard.errors import PeerLost, ProtocolMismatch
from moonshard.transport import wire
from moonshard.transport.contract import WireSpec
from moonshard.transport.links.handle import LinkHandle, ShardLink
from moonshard.transport.links.routing import ShardRows, split_by_shard


def route(handle: LinkHandle, spec: WireSpec) -> dict[int, ShardRows]:
    """By shard."""
    # CUDA rows take the copies here and below (`.cpu()`); this has never run on a CUDA device.
    ids_TK = handle.topk_ids_TK.to("cpu", torch.int32).contiguous().numpy()
    assert not ids_TK.size or ids_TK.max() < spec.num_experts, f"expert ids reach {ids_TK.max()} of {spec.num_experts}"
    shards_TK = handle.table.choose(handle.layer, handle.step, ids_TK)
    return {rows.shard: rows for rows in split_by_shard(ids_TK, shards_TK, spec)}


class RowSender:
    def __init__(self, spec: WireSpec, source: int) -> None:
        self._spec = spec
        self._source = source

    def send(self, links: Sequence[ShardLink], handle: LinkHandle) -> list[tuple[ShardLink, PeerLost]]:
        """To each link that is up the rows its shard serves; the links that broke over it."""
        weights_TK = handle.topk_weights_TK.detach().to("cpu", torch.float32).contiguous().numpy()
        rows_TB = wire.rows_to_bytes(handle.x_TD.to("cpu", self._spec.row_dtype).contiguous())
        broken = []
        for link in links:
            try:
                if not link.error:
                    self._send_one(link, handle, rows_TB, weights_TK)
            except PeerLost as error:
                broken.append((link, error))
        return broken

    def _send_one(
        self, link: ShardLink, handle: LinkHandle, rows_TB: wire.Bytes, weights_TK: NDArray[np.float32]
    ) -> None:
        _, rows_R, ids_RK, _ = handle.routes[link.shard]
        if len(ids_RK) > link.max_rows:
            raise ProtocolMismatch(f"shard {link.shard}: at most {link.max_rows} rows a message, got {len(ids_RK)}")
        header = handle.headers.get(len(ids_RK)) or self._make_header(handle, len(ids_RK))
        if rows_R is not None:
            rows_TB, weights_TK = rows_TB[rows_R], weights_TK[rows_R]
        link.expect_reply(handle)
        link.stream.send(header, ids_RK, weights_TK, rows_TB)
        link.stream.record.sent_bytes += wire.HEADER_BYTES + wire.dispatch_bytes(self._spec, len(ids_RK))

    def _make_header(self, handle: LinkHandle, num_rows: int) -> bytes:
        """Shards that get equally many rows get the same header."""
        header = wire.dispatch_header(self._spec, self._source, handle.step, handle.layer, num_rows)
        handle.headers[num_rows] = wire.pack_header(header)
        return handle.headers[num_rows]
