"""What a choice says: text never holds half a character nor a stop text, however the tokens fall."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshard.router.output import ChoiceDelta
from moonshard.router.requests import Finish, Timings
from moonshard.router.stop_texts import StopTexts
from moonshard.sampling import FinishReason, SamplingParams, TokenLogprobs
from tests.unit.router.router_peers import END_OF_TURN, new_output

FINISH = Finish(FinishReason.LENGTH, None, 1, 1, Timings(0, 0, 0))


def cut(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """The slow obvious twin: look at the whole text after each character."""
    for end in range(1, len(text) + 1):
        found = [(text[:end].find(stop), -len(stop), stop) for stop in stops if stop in text[:end]]
        if found:
            at, _, stop = min(found)
            return text[: at + len(stop) if include else at], stop
    return text, None


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=5), max_size=4), st.booleans())
def test_stop_texts_are_cut_as_on_the_whole_text(text: str, stops: list[str], include: bool) -> None:
    seen = StopTexts(stops, include)
    given_out = []
    for character in text:
        given_out.append(seen.push(character))
        assert "".join(given_out) == cut(text, stops, include)[0][: len("".join(given_out))]
    given_out.append(seen.finish())
    assert ("".join(given_out), seen.found) == cut(text, stops, include)


@given(st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3), st.text("ab", max_size=20))
def test_no_more_is_held_back_than_may_become_a_stop_text(stops: list[str], text: str) -> None:
    seen = StopTexts(stops, False)
    out = "".join(seen.push(character) for character in text)
    if seen.found is None:
        held = text[len(out) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def push_all(sampling: SamplingParams, pieces: list[bytes]) -> tuple[ChoiceDelta, int]:
    output = new_output(0, sampling)
    num_taken = 0
    for piece in pieces:
        if output.stop_text is None:
            num_taken += output.push(list(piece), [TokenLogprobs(byte, -1.0) for byte in piece])
    output.finish(FINISH)
    delta = output.take()
    assert delta is not None
    assert output.take() is None
    return delta, num_taken


@given(st.data())
def test_any_split_of_the_tokens_says_the_same(data: st.DataObject) -> None:
    text = data.draw(st.text("aé€b", max_size=12)).encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    sampling = SamplingParams(stop=("€b", "ba"))
    assert push_all(sampling, pieces) == push_all(sampling, [bytes([byte]) for byte in text])
    delta, num_taken = push_all(sampling, pieces)
    assert len(delta.token_ids) == len(delta.logprobs) == num_taken
    assert text.startswith(delta.text.encode())


def test_tokens_end_with_the_one_that_completed_the_stop_text() -> None:
    delta, num_taken = push_all(SamplingParams(stop=("lo",), include_stop=True), [b"hello world"])
    assert (delta.text, bytes(delta.token_ids), num_taken) == ("hello", b"hello", 5)


@pytest.mark.parametrize(("min_tokens", "text"), [(0, ""), (2, "aaa"), (3, "aaaa")])
def test_no_stop_text_is_seen_in_the_first_min_tokens(min_tokens: int, text: str) -> None:
    delta, _ = push_all(SamplingParams(stop=("aa",), min_tokens=min_tokens), [b"aaaaaa"])
    assert delta.text == "a" * min_tokens


def test_tokens_that_only_say_the_turn_is_over_have_no_text() -> None:
    output = new_output()
    output.push([*b"so", 10], stop_token_id=10)
    output.finish(FINISH)
    delta = output.take()
    assert delta is not None
    assert (delta.text, delta.token_ids) == ("so", (*b"so", 10))
    other = new_output()
    other.push([*b"so", END_OF_TURN])
    assert (found := other.take()) is not None
    assert found.text == "so"
