"""Domain values across the border and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moonshard.errors import RequestError
from moonshard.rpc.codec import (
    finish_from_proto,
    finish_to_proto,
    messages_to_dicts,
    sampling_from_proto,
    sampling_to_proto,
)
from moonshard.sampling import FinishReason, SamplingParams
from moonshard.v1 import inference_pb2 as pb

params = st.builds(
    SamplingParams,
    temperature=st.floats(0, 2),
    top_p=st.floats(0, 1, exclude_min=True),
    top_k=st.integers(0, 2**31 - 1),
    seed=st.integers(0, 2**64 - 1) | st.none(),
    max_tokens=st.integers(1, 2**31 - 1) | st.none(),
    stop_token_ids=st.lists(st.integers(0, 2**31 - 1), max_size=64).map(tuple),
    ignore_eos=st.booleans(),
)


@given(params)
def test_sampling_survives_the_way(values: SamplingParams) -> None:
    wire = pb.SamplingParams.FromString(sampling_to_proto(values).SerializeToString())
    assert sampling_from_proto(wire) == values


def test_unset_fields_take_the_defaults_and_zero_is_not_unset() -> None:
    defaults = SamplingParams(temperature=0.6, max_tokens=5)
    assert sampling_from_proto(pb.SamplingParams(), defaults) == defaults
    assert sampling_from_proto(pb.SamplingParams(temperature=0, seed=0), defaults) == SamplingParams(
        temperature=0.0, seed=0, max_tokens=5
    )


@pytest.mark.parametrize("reason", [None, *FinishReason])
def test_finish_reasons_survive_the_way(reason: FinishReason | None) -> None:
    assert finish_from_proto(finish_to_proto(reason)) is reason


def test_a_finish_reason_of_a_newer_contract_is_refused() -> None:
    with pytest.raises(RequestError, match="unknown value 9"):
        finish_from_proto(9)  # type: ignore[arg-type]


def test_messages_become_what_templates_read() -> None:
    call = pb.ToolCall(id="functions.f:0", name="f", arguments='{"a": 1}')
    messages = [
        pb.Message(role="user", content="", name="Ann"),
        pb.Message(role="assistant", reasoning_content="hm", tool_calls=[call]),
        pb.Message(role="tool", content="1", tool_call_id="functions.f:0"),
    ]
    assert messages_to_dicts(messages) == [
        {"role": "user", "content": "", "name": "Ann"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": "functions.f:0", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
            ],
        },
        {"role": "tool", "content": "1", "tool_call_id": "functions.f:0"},
    ]
