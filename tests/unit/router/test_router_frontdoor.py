"""FrontDoor over an engine with workers of this test: choices, stop texts, ids, aborts."""

import asyncio
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry

from moonshard.errors import Aborted, DuplicateRequest, Overloaded, RequestError, Unavailable
from moonshard.router.account import FreeCredits
from moonshard.router.answer import Answer
from moonshard.router.engine import Engine
from moonshard.router.flight import Flight, SequenceUpdate
from moonshard.router.frontdoor import FrontDoor, Submission
from moonshard.router.members import Credits
from moonshard.router.metrics import RouterMetrics
from moonshard.router.output import ChoiceDelta
from moonshard.router.requests import Limits
from moonshard.sampling import Constraint, ConstraintKind, FinishReason, SamplingParams, TokenLogprobs
from tests.unit.router.router_peers import END_OF_TEXT, END_OF_TURN, VOCAB_SIZE, run, small_model

LIMITS = Limits(VOCAB_SIZE, 512, 512, 64, (END_OF_TURN, END_OF_TEXT))


class Orders:
    """What the engine told worker 0."""

    def __init__(self) -> None:
        self.admitted: list[Flight] = []
        self.aborted: list[str] = []

    def admit(self, rank: int, flights: Sequence[Flight]) -> None:
        self.admitted += flights

    def abort(self, rank: int, sequence_ids: Sequence[str]) -> None:
        self.aborted += sequence_ids


class Scene:
    def __init__(self, max_num_seqs: int = 8, max_queue: int = 8) -> None:
        self.orders = Orders()
        self.registry = CollectorRegistry()
        metrics = RouterMetrics(self.registry, "m")
        self.engine = Engine(max_queue, self.orders, metrics, lambda: 0.0)
        self.engine.refusal = None
        self.engine.add_worker(0, Credits(16, 64, max_num_seqs, 64))
        self.door = FrontDoor(small_model(), self.engine, lambda: LIMITS, metrics, lambda: 0.0)

    def submit(self, request_id: str = "", **sampling: object) -> Answer:
        params = SamplingParams(**sampling)  # type: ignore[arg-type]
        return self.door.submit(Submission(list(b"hi"), params, request_id))

    def say(self, number: int, text: str, finish: FinishReason | None = None, **values: object) -> None:
        update = SequenceUpdate(self.orders.admitted[number].sequence_id, tuple(text.encode()), finish, **values)  # type: ignore[arg-type]
        self.engine.update(0, [update])


async def read(answer: Answer) -> list[ChoiceDelta]:
    return [delta async for delta in answer.deltas()]


def test_n_choices_draw_with_seeds_of_their_own_and_finish_each() -> None:
    async def test() -> None:
        scene = Scene()
        answer = scene.submit(n=3, seed=2**64 - 2)
        assert [flight.request.sampling.seed for flight in scene.orders.admitted] == [2**64 - 2, 2**64 - 1, 0]
        assert {flight.request.sampling.n for flight in scene.orders.admitted} == {1}
        for number, text in enumerate(("one", "two", "three")):
            scene.say(2 - number, text)
        for number in range(3):
            scene.say(number, "!", FinishReason.LENGTH)
        deltas = await read(answer)
        texts = {choice: "".join(d.text for d in deltas if d.choice == choice) for choice in range(3)}
        assert texts == {0: "three!", 1: "two!", 2: "one!"}
        assert [d.choice for d in deltas if d.finish] == [2, 1, 0]
        assert not scene.engine.num_running

    run(test)


def test_a_stop_text_ends_the_sequence_at_its_worker_at_once() -> None:
    async def test() -> None:
        scene = Scene()
        answer = scene.submit(stop=("END",), logprobs=0)
        scene.say(0, "one E", logprobs=tuple(TokenLogprobs(byte, -0.5) for byte in b"one E"))
        scene.say(0, "ND and", logprobs=tuple(TokenLogprobs(byte, -0.5) for byte in b"ND and"))
        assert scene.orders.aborted == [scene.orders.admitted[0].sequence_id]
        assert scene.engine.num_running == 0
        scene.say(0, "late")
        (delta,) = await read(answer)
        assert (delta.text, bytes(delta.token_ids)) == ("one ", b"one END")
        assert len(delta.logprobs) == len(delta.token_ids)
        assert delta.finish is not None
        assert (delta.finish.reason, delta.finish.stop_text, delta.finish.stop_token_id) == (
            FinishReason.STOP,
            "END",
            None,
        )
        assert delta.finish.num_completion_tokens == 7

    run(test)


def test_a_stop_text_in_the_last_tokens_wins_over_the_length() -> None:
    async def test() -> None:
        scene = Scene()
        answer = scene.submit(stop=("x",))
        scene.say(0, "axb", FinishReason.LENGTH)
        (delta,) = await read(answer)
        assert delta.finish is not None
        assert (delta.text, delta.finish.reason, delta.finish.num_completion_tokens) == ("a", FinishReason.STOP, 2)
        assert scene.orders.aborted == []

    run(test)


def test_ids_are_held_until_the_end_and_aborts_reach_every_choice() -> None:
    async def test() -> None:
        scene = Scene(max_num_seqs=1)
        answer = scene.submit("mine", n=2)
        with pytest.raises(DuplicateRequest, match="'mine' is in use"):
            scene.submit("mine")
        assert scene.door.abort("mine")
        assert not scene.door.abort("mine")
        assert scene.orders.aborted == [scene.orders.admitted[0].sequence_id]
        assert scene.engine.num_running == scene.engine.num_waiting == 0
        with pytest.raises(Aborted, match="'mine' was aborted"):
            await read(answer)
        again = scene.submit("mine")
        scene.engine.update(0, [], FreeCredits(num_free_blocks=64, num_free_seqs=1, num_admitted=1))
        answer.abandon()  # of the former life: must not touch the new one
        scene.say(1, "yes", FinishReason.STOP)
        assert [delta.text for delta in await read(again)] == ["yes"]
        scene.submit("mine").abandon()

    run(test)


def test_an_error_of_one_choice_ends_the_answer() -> None:
    async def test() -> None:
        scene = Scene()
        answer = scene.submit(n=2)
        scene.say(0, "a")
        scene.say(1, "", error="broken")
        deltas = answer.deltas()
        assert (await anext(deltas)).text == "a"
        with pytest.raises(Unavailable, match="attention-0: broken"):
            await anext(deltas)
        answer.abandon()
        assert scene.orders.aborted == [scene.orders.admitted[0].sequence_id]

    run(test)


def test_a_request_is_queued_whole_or_not_at_all() -> None:
    async def test() -> None:
        scene = Scene(max_num_seqs=1, max_queue=2)
        with pytest.raises(Overloaded, match="0 of 2 requests"):
            scene.submit(n=3)
        assert scene.engine.num_running == scene.engine.num_waiting == 0
        scene.submit(n=2)
        assert (scene.engine.num_running, scene.engine.num_waiting) == (1, 1)

    run(test)


def test_refusals_are_counted_once_by_reason() -> None:
    scene = Scene()
    with pytest.raises(RequestError, match="constraint: regex"), scene.door.counting_refusals():
        scene.submit(constraint=Constraint(ConstraintKind.REGEX, "a+"))
    labels = {"model_name": "m", "reason": "invalid"}
    assert scene.registry.get_sample_value("moonshard_router_rejected_total", labels) == 1


def test_a_reader_that_comes_late_gets_everything_merged() -> None:
    async def test() -> None:
        scene = Scene()
        answer = scene.submit()
        for text in ("a", "b"):
            scene.say(0, text)
        reader = asyncio.create_task(read(answer))
        await asyncio.sleep(0)
        scene.say(0, "c", FinishReason.LENGTH)
        assert [delta.text for delta in await reader] == ["ab", "c"]

    run(test)
