"""What `moonshard chat` and `moonshard generate` print."""

import pytest

from moonshard.v1 import inference_pb2 as pb
from moonshard_cluster.commands.ask import stream

END = pb.Finish(
    reason=pb.FINISH_REASON_STOP,
    usage=pb.Usage(prompt_tokens=3, completion_tokens=5),
    timings=pb.Timings(queue_s=0.25, prefill_s=0.25, decode_s=2.0),
)


def test_reasoning_is_printed_apart_and_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    responses = [
        pb.ChatResponse(reasoning_content="let me "),
        pb.ChatResponse(reasoning_content="see"),
        pb.ChatResponse(content="hel"),
        pb.ChatResponse(content="lo", finish=END),
    ]
    assert stream(iter(responses)) == "hello"
    printed = capsys.readouterr()
    assert printed.out == "let me see\n\nhello\n"
    assert printed.err == "[3 + 5 tokens, first after 0.50 s, 2.0 tokens/s, stop]\n"


def test_text_alone_is_printed_as_it_comes(capsys: pytest.CaptureFixture[str]) -> None:
    assert stream(iter([pb.GenerateResponse(text="a"), pb.GenerateResponse(text="b", finish=END)])) == "ab"
    assert capsys.readouterr().out == "ab\n"
