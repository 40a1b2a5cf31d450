"""The header's bytes, the payload's layout, and the split of rows by shard."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from moonshard.errors import ConfigError, ProtocolMismatch
from moonshard.transport import wire
from moonshard.transport.contract import mask_foreign
from moonshard.transport.links.routing import split_by_shard
from moonshard.transport.routing_table import RoutingTable
from moonshard.transport.wire import Header, Kind
from tests.contract.transport_cluster import make_rows, make_spec

HEADER = Header(Kind.DISPATCH, torch.bfloat16, 5, 7, 3, 1, 2, 24, 4, 160)


def test_the_bytes_of_a_header() -> None:
    """Version 1 on the wire; a change here needs a new version number."""
    assert wire.pack_header(HEADER).hex() == (
        "4d4e5344" "0100" "04" "02" "0500000000000000" "07000000" "03000000" "01000000"
        "02000000" "18000000" "04000000" "a000000000000000" "000000000000000000000000" "CRC"
    ).replace("CRC", wire.pack_header(HEADER)[-4:].hex())  # fmt: skip
    assert len(wire.pack_header(HEADER)) == wire.HEADER_BYTES


@given(
    kind=st.sampled_from(Kind),
    dtype=st.sampled_from([None, torch.float32, torch.bfloat16]),
    step=st.integers(0, 2**64 - 1),
    layer=st.integers(-(2**31), 2**31 - 1),
    rows=st.integers(0, 2**32 - 1),
)
def test_headers_come_back(kind: Kind, dtype: torch.dtype | None, step: int, layer: int, rows: int) -> None:
    header = Header(kind, dtype, step, 0, layer, 0, rows, 7168, 8, 2**40)
    assert wire.parse_header(wire.pack_header(header)) == header


@given(position=st.integers(0, wire.HEADER_BYTES - 1), flip=st.integers(1, 255))
def test_any_damaged_byte_is_noticed(position: int, flip: int) -> None:
    data = bytearray(wire.pack_header(HEADER))
    data[position] ^= flip
    with pytest.raises(ProtocolMismatch, match=r"header: (magic|version|checksum): expected .*, got "):
        wire.parse_header(bytes(data))


@pytest.mark.parametrize("field", Header._fields)
def test_a_differing_field_is_named_with_both_values(field: str) -> None:
    other = HEADER._replace(**{field: Kind.REPLY if field == "kind" else None if field == "dtype" else 77})
    with pytest.raises(ProtocolMismatch, match=f"dispatch: {field}: expected .*, got .*(77|REPLY|None)"):
        wire.check_header("dispatch", HEADER, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dispatch_payload_comes_back(dtype: torch.dtype) -> None:
    spec = make_spec(row_dtype=dtype, hidden_size=5)
    x_TD, ids_TK, weights_TK = make_rows(spec, 3)
    payload = np.concatenate([wire.rows_to_bytes(part).ravel() for part in (ids_TK, weights_TK, x_TD)])
    assert len(payload) == wire.dispatch_bytes(spec, 3)
    ids_RK, weights_RK, x_RD = wire.split_dispatch(payload, spec, 3)
    assert torch.equal(ids_RK, ids_TK)
    assert torch.equal(weights_RK, weights_TK)
    assert torch.equal(x_RD, x_TD)
    assert x_RD.dtype == dtype


def test_the_fields_of_both_ends_are_compared_one_by_one() -> None:
    spec = make_spec()
    wire.check_fields("handshake", wire.spec_fields(spec), wire.spec_fields(replace(spec)))
    with pytest.raises(ProtocolMismatch, match=r"handshake: epoch: expected 7, got None"):
        wire.check_fields("handshake", wire.spec_fields(spec), {**wire.spec_fields(spec), "epoch": None})
    with pytest.raises(ProtocolMismatch, match=r"expected an object with .*, got list"):
        wire.check_fields("handshake", wire.spec_fields(spec), [])


def test_rows_travel_as_float32_or_bfloat16_only() -> None:
    with pytest.raises(ConfigError, match=r"row_dtype: must be float32 or bfloat16, got torch.float16"):
        make_spec(row_dtype=torch.float16)


@settings(deadline=None)
@given(num_rows=st.integers(0, 9), first=st.integers(0, 40), count=st.integers(4, 48), seed=st.integers(0, 99))
def test_split_by_shard_agrees_with_the_slow_way(num_rows: int, first: int, count: int, seed: int) -> None:
    spec = make_spec()
    _, ids_TK, _ = make_rows(spec, num_rows, seed, range(first, min(48, first + count)))
    shards_TK = RoutingTable(spec).choose(1, 0, ids_TK.numpy())
    routes = {route.shard: route for route in split_by_shard(ids_TK.numpy(), shards_TK, spec)}
    for shard in range(spec.num_shards):
        masked_TK = mask_foreign(ids_TK, spec.experts_of(shard))
        rows = (masked_TK >= 0).any(1).nonzero().squeeze(1)
        assert (shard in routes) == bool(len(rows))
        if shard in routes:
            _, rows_R, ids_RK, num_sums = routes[shard]
            assert num_sums == len(ids_RK)
            assert (list(range(num_rows)) if rows_R is None else rows_R.tolist()) == rows.tolist()
            assert ids_RK.tolist() == masked_TK[rows].tolist()


def test_split_by_hand() -> None:
    """Two shards of two experts."""
    spec = make_spec(num_experts=4, num_shards=2, top_k=2)
    ids_TK = np.array([[0, 3], [1, 0], [2, 3]], np.int32)
    first, second = split_by_shard(ids_TK, RoutingTable(spec).choose(1, 0, ids_TK), spec)
    assert (first.shard, first.rows_R.tolist(), first.ids_RK.tolist()) == (0, [0, 1], [[0, -1], [1, 0]])
    assert (second.shard, second.rows_R.tolist(), second.ids_RK.tolist()) == (1, [0, 2], [[-1, 3], [2, 3]])


def test_sums_by_expert_by_hand() -> None:
    """Expert 1 has a copy at each shard, which take turns; expert 2 has moved to the first."""
    spec = make_spec(num_experts=4, num_shards=2, top_k=2, moe_layers=(1,), sums="expert")
    table = RoutingTable(spec, [((0, 1, 2), (1, 3))])
    ids_TK = np.array([[0, 1], [1, 0], [2, 3], [1, -1]], np.int32)
    assert table.choose(1, 0, ids_TK).tolist() == [[0, 1], [0, 0], [0, 1], [0, -1]]
    assert table.choose(1, 1, ids_TK).tolist() == [[0, 0], [1, 0], [0, 1], [1, -1]]
    first, second = split_by_shard(ids_TK, table.choose(1, 1, ids_TK), spec)
    assert first.rows_R is not None
    assert (first.rows_R.tolist(), first.ids_RK.tolist()) == ([0, 1, 2], [[0, 1], [-1, 0], [2, -1]])
    assert (first.num_sums, first.places().tolist()) == (4, [0, 1, 3, 4])
    assert (second.num_sums, second.places().tolist()) == (3, [2, 5, 6])


def test_a_table_must_hold_every_expert() -> None:
    spec = make_spec(num_experts=4, num_shards=2, top_k=2, moe_layers=(5,), sums="expert")
    with pytest.raises(ConfigError, match="placement: expert 2 has no copy in layer 5"):
        RoutingTable(spec, [((0, 1), (1, 3))])
    with pytest.raises(ConfigError, match="placement: must have 1 layers, got 2"):
        RoutingTable(spec, [((0, 1), (2, 3))] * 2)
    with pytest.raises(ConfigError, match="placement: sums by shard need contiguous blocks: set experts"):
        RoutingTable(make_spec(num_experts=4, num_shards=2, top_k=2, moe_layers=(5,)), [((0, 2), (1, 3))])
