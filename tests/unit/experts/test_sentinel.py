"""The sentinel of resident weights: what it finds, and what it must not take for damage."""

import threading
from collections.abc import Iterator

import pytest
import torch

from moonshard.experts.sentinel import Sentinel, Weights, checksum_of
from moonshard.experts.shard import Shard
from moonshard.kernels import Int4Experts, Pool, available
from moonshard.model.experts import ExpertStack, Int4Projection, PlainProjection
from moonshard.model.native_experts import NativeExpertStack

EXPERTS = range(4, 7)


def _plain(layer: int) -> ExpertStack:
    torch.manual_seed(layer)
    return ExpertStack(
        EXPERTS, PlainProjection(torch.rand(3, 8, 4).bfloat16()), PlainProjection(torch.rand(3, 4, 4).bfloat16())
    )


def _int4(layer: int) -> ExpertStack:
    torch.manual_seed(layer)
    packed, scale = torch.randint(9, (3, 8, 4), dtype=torch.int32), torch.rand(3, 8, 1)
    return ExpertStack(EXPERTS, Int4Projection(packed, scale), Int4Projection(packed.clone(), scale.clone()))


def _native(layer: int) -> NativeExpertStack:
    kernels = Int4Experts(EXPERTS.start, len(EXPERTS), 32, 32)
    for slot in range(len(EXPERTS)):
        kernels.memory_of(slot)[:] = layer + slot
    return NativeExpertStack(kernels, Pool(1), "int8")


STACKS = [_plain, _int4]
if available():
    STACKS.append(_native)


@pytest.mark.parametrize("make", STACKS)
def test_every_byte_of_every_expert_is_watched(make) -> None:  # type: ignore[no-untyped-def]
    shard = Shard({1: make(1), 2: make(2)}, EXPERTS)
    sentinel = Sentinel(shard.weights, shard.look, 1.0, lambda *_: None)
    found = list(shard.weights())
    assert [(it.layer, it.expert) for it in found] == [(layer, expert) for layer in (1, 2) for expert in EXPERTS]
    assert all(sentinel.check(it) for it in found)
    assert all(sentinel.check(it) for it in found)
    assert sentinel.num_checked == 2 * len(found)
    for damaged in found:
        for tensor in damaged.memory:
            bytes_ = tensor.view(torch.uint8).view(-1)
            for place in (0, bytes_.numel() // 2, bytes_.numel() - 1):
                bytes_[place] ^= 64
                assert [it for it in found if not sentinel.check(it)] == [damaged]
                bytes_[place] ^= 64


def test_an_expert_that_moves_is_no_damage() -> None:
    here, there = torch.arange(8, dtype=torch.uint8), torch.arange(8, dtype=torch.uint8)
    places: dict[int, torch.Tensor | None] = {0: here}

    def look(layer: int, expert: int) -> Weights | None:
        memory = places[expert]
        return None if memory is None else Weights(layer, expert, (memory,))

    sentinel = Sentinel(lambda: iter(()), look, 1.0, lambda *_: None)
    before = Weights(1, 0, (here,))
    assert sentinel.check(before)
    here[0] = 99  # another expert's, by now
    places[0] = there
    assert sentinel.check(before), "it was read while it moved"
    assert sentinel.check(Weights(1, 0, (there,))), "the same bytes in another place"
    places[0] = None
    assert sentinel.check(before)
    assert sentinel.num_checked == 2


def test_the_alarm_names_layer_and_expert_once() -> None:
    memory = {expert: torch.full((16,), expert, dtype=torch.uint8) for expert in range(3)}
    alarms: list[tuple[int, int]] = []
    rang, looked = threading.Event(), threading.Event()

    def weights() -> Iterator[Weights]:
        if len(rounds) == 2:
            looked.set()
        rounds.append(1)
        for expert, bytes_ in memory.items():
            yield Weights(5, expert, (bytes_,))

    def alarm(layer: int, expert: int) -> None:
        alarms.append((layer, expert))
        rang.set()

    rounds: list[int] = []
    sentinel = Sentinel(weights, lambda layer, expert: Weights(layer, expert, (memory[expert],)), 0.06, alarm)
    sentinel.start()
    assert looked.wait(10)
    memory[1][3] ^= 1
    assert rang.wait(10)
    sentinel.close()
    assert alarms == [(5, 1)]


def test_it_ends_in_the_middle_of_a_long_round() -> None:
    memory = torch.zeros(4, dtype=torch.uint8)
    weights = [Weights(1, expert, (memory,)) for expert in range(10)]
    sentinel = Sentinel(lambda: iter(weights), lambda _, expert: weights[expert], 3600.0, lambda *_: None)
    sentinel.start()
    sentinel.close()
    assert checksum_of((memory, memory)) == checksum_of((torch.zeros(8, dtype=torch.uint8),))
