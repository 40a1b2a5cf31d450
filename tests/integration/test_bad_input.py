"""Broken requests, flags and checkpoints: each has its clear error and status, and the cell serves the next request."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from moonshard.v1 import inference_pb2 as pb
from moonshard.v1.inference_pb2_grpc import InferenceStub
from moonshard_cluster.client import Client
from moonshard_cluster.local.supervisor import LocalCluster
from tests.integration.cells import greedy, moonshard

INVALID = grpc.StatusCode.INVALID_ARGUMENT
PROMPT = pb.TokenIds(ids=[5, 6, 7])


def generate(**fields: Any) -> pb.GenerateRequest:
    fields.setdefault("token_ids", PROMPT)
    return pb.GenerateRequest(**fields)


def sampled(**sampling: Any) -> pb.GenerateRequest:
    return generate(sampling=pb.SamplingParams(**sampling))


def chat(*messages: pb.Message) -> pb.ChatRequest:
    return pb.ChatRequest(messages=messages)


# request, words that the message must contain
REQUESTS: dict[str, tuple[pb.GenerateRequest | pb.ChatRequest, list[str]]] = {
    "no prompt": (pb.GenerateRequest(), ["prompt"]),
    "empty text": (pb.GenerateRequest(text=""), ["empty"]),
    "empty ids": (pb.GenerateRequest(token_ids=pb.TokenIds()), ["empty"]),
    "id past the vocabulary": (generate(token_ids=pb.TokenIds(ids=[1, 2048])), ["token_ids[1]", "0..2047", "2048"]),
    "negative id": (generate(token_ids=pb.TokenIds(ids=[-1])), ["token_ids[0]", "-1"]),
    "prompt too long": (generate(token_ids=pb.TokenIds(ids=[1] * 5000)), ["5000", "4096"]),
    "no room for the answer": (sampled(max_tokens=4096), ["max_tokens", "4096"]),
    "no answer wanted": (sampled(max_tokens=0), ["max_tokens", "at least 1", "0"]),
    "negative answer": (sampled(max_tokens=-5), ["max_tokens", "-5"]),
    "negative temperature": (sampled(temperature=-0.1), ["temperature", "[0, 2]", "-0.1"]),
    "boiling temperature": (sampled(temperature=100), ["temperature", "100"]),
    "NaN temperature": (sampled(temperature=float("nan")), ["temperature", "nan"]),
    "infinite temperature": (sampled(temperature=float("inf")), ["temperature", "inf"]),
    "zero top_p": (sampled(top_p=0.0), ["top_p", "(0, 1]", "0"]),
    "top_p over one": (sampled(top_p=1.5), ["top_p", "1.5"]),
    "negative top_k": (sampled(top_k=-3), ["top_k", "-3"]),
    "stop id past the vocabulary": (sampled(stop_token_ids=[99999]), ["stop_token_ids", "99999"]),
    "hundred stop ids": (sampled(stop_token_ids=list(range(100))), ["stop_token_ids", "64", "100"]),
    "endless request id": (generate(request_id="x" * 1000), ["request_id"]),
    "no messages": (chat(), ["messages"]),
    "unknown role": (chat(pb.Message(role="wizard", content="hi")), ["messages[0].role", "wizard"]),
    "missing role": (chat(pb.Message(content="hi")), ["messages[0].role"]),
    "tool without a call id": (chat(pb.Message(role="tool", content="42")), ["messages[0].tool_call_id"]),
    "chat too long": (chat(pb.Message(role="user", content="a " * 20000)), ["4096"]),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_a_bad_request_is_refused_by_name_and_the_next_is_served(
    case: str, shared_cell: tuple[LocalCluster, Client]
) -> None:
    request, words = REQUESTS[case]
    cluster, client = shared_cell
    with grpc.insecure_channel(cluster.router_address) as channel:
        call = InferenceStub(channel).Chat if isinstance(request, pb.ChatRequest) else InferenceStub(channel).Generate
        with pytest.raises(grpc.RpcError) as refusal:
            list(call(request, timeout=30))
    assert refusal.value.code() is INVALID
    assert all(word in refusal.value.details() for word in words), refusal.value.details()
    assert len(greedy(client, [5, 6, 7], max_tokens=2)) == 2


def test_an_id_in_use_is_refused_and_free_afterwards(shared_cell: tuple[LocalCluster, Client]) -> None:
    cluster, client = shared_cell
    request = generate(request_id="mine", sampling=pb.SamplingParams(max_tokens=500, ignore_eos=True))
    with grpc.insecure_channel(cluster.router_address) as channel:
        running = InferenceStub(channel).Generate(request, timeout=60)
        next(running)
        with pytest.raises(grpc.RpcError) as refusal:
            list(InferenceStub(channel).Generate(request, timeout=30))
        assert refusal.value.code() is grpc.StatusCode.ALREADY_EXISTS
        assert "'mine'" in refusal.value.details()
        running.cancel()
    answer = list(client.generate(generate(request_id="mine", sampling=pb.SamplingParams(max_tokens=1)), 30))
    assert answer[-1].finish.usage.completion_tokens == 1


def test_a_message_that_is_not_protobuf_is_an_error_of_its_caller_only(
    shared_cell: tuple[LocalCluster, Client],
) -> None:
    cluster, client = shared_cell
    with grpc.insecure_channel(cluster.router_address) as channel:
        raw = channel.unary_stream("/moonshard.v1.Inference/Generate")
        with pytest.raises(grpc.RpcError):
            list(raw(b"\xff\xff not protobuf", timeout=30))
        unknown = channel.unary_unary("/moonshard.v1.Inference/Divine")
        with pytest.raises(grpc.RpcError) as refusal:
            unknown(b"", timeout=30)
    assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert len(greedy(client, [5, 6, 7], max_tokens=2)) == 2


def test_a_callers_deadline_ends_its_request_and_frees_its_place(shared_cell: tuple[LocalCluster, Client]) -> None:
    cluster, client = shared_cell
    with grpc.insecure_channel(cluster.router_address) as channel:
        request = sampled(max_tokens=4000, ignore_eos=True)
        with pytest.raises(grpc.RpcError) as refusal:
            list(InferenceStub(channel).Generate(request, timeout=0.3))
    assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # Takes all KV blocks but the prompt's: served only when the lost caller's are free.
    answer = list(client.generate(sampled(max_tokens=4090, stop_token_ids=list(range(60)), temperature=2.0), 60))
    assert answer[-1].HasField("finish")


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        config["text_config"].update(changes)
        (path / "config.json").write_text(json.dumps(config))

    return edit


def edit_index(edit: Callable[[dict[str, str]], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        index_path = path / "model.safetensors.index.json"
        index = json.loads(index_path.read_text())
        edit(index["weight_map"])
        index_path.write_text(json.dumps(index))

    return apply


def truncate(name: str, keep: float) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        data = (path / name).read_bytes()
        (path / name).write_bytes(data[: int(len(data) * keep)])

    return cut


GATE = "language_model.model.layers.1.mlp.gate.weight"
EXPERT = "language_model.model.layers.2.mlp.experts.383.down_proj.weight_scale"

# how to break a checkpoint, words that the message must contain
CHECKPOINTS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no config": (lambda path: (path / "config.json").unlink(), ["config.json"]),
    "config is not JSON": (lambda path: (path / "config.json").write_text("{"), ["config.json"]),
    "unknown architecture": (edit_config(scoring_func="softmax"), ["scoring_func", "softmax"]),
    "experts that shards cannot share": (edit_config(n_routed_experts=383), ["num_shards", "383", "8"]),
    "more chosen than there are": (edit_config(num_experts_per_tok=500), ["num_experts_per_tok", "500", "384"]),
    "width of another model": (edit_config(hidden_size=96), ["shape: expected", "found"]),
    "no tokenizer": (lambda path: (path / "tiktoken.model").unlink(), ["tiktoken.model"]),
    "no template": (lambda path: (path / "chat_template.jinja").unlink(), ["chat_template"]),
    "no index": (lambda path: (path / "model.safetensors.index.json").unlink(), ["model.safetensors"]),
    "index without a tensor": (edit_index(lambda names: names.pop(GATE)), [GATE]),
    "index without an expert's": (edit_index(lambda names: names.pop(EXPERT)), [EXPERT]),
    "index names an absent file": (
        edit_index(lambda names: names.update({GATE: "model-00009-of-000004.safetensors"})),
        ["model-00009-of-000004.safetensors"],
    ),
    "index with a stranger": (
        edit_index(lambda names: names.update({"language_model.model.layers.1.mlp.magic": names[GATE]})),
        ["language_model.model.layers.1.mlp.magic"],
    ),
    "truncated file": (truncate("model-00002-of-000004.safetensors", 0.5), ["model-00002-of-000004.safetensors"]),
    "file cut in its header": (truncate("model-00004-of-000004.safetensors", 1e-4), ["model-00004-of-000004"]),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_broken_checkpoint_is_refused_by_name(case: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    spoil, words = CHECKPOINTS[case]
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    spoil(broken)
    done = moonshard("up", str(broken), "--port", "0", "--log-dir", str(tmp_path / "logs"))
    assert done.returncode == 2, done.stderr
    assert all(word in done.stderr.replace("\n", "") for word in words), done.stderr
    assert "Traceback" not in done.stderr


FLAGS: dict[str, tuple[list[str], list[str]]] = {
    "no such directory": (["up", "/nowhere"], ["/nowhere"]),
    "unknown transport": (["up", "CHECKPOINT", "--transport", "pigeon"], ["transport", "pigeon", "all_to_all"]),
    "unknown dtype": (["up", "CHECKPOINT", "--dtype", "int3"], ["dtype", "int3"]),
    "shards that do not divide": (["up", "CHECKPOINT", "--shards", "7"], ["num_shards", "384", "7"]),
    "no attention": (["up", "CHECKPOINT", "--attention", "0"], ["num_attention", "0"]),
    "port past the last": (["up", "CHECKPOINT", "--port", "70000"], ["router.port", "70000"]),
    "negative eps": (["up", "CHECKPOINT", "--latent-norm-eps", "-1"], ["latent_norm_eps", "-1"]),
    "unknown flag": (["up", "CHECKPOINT", "--shard", "8"], ["No such option", "--shards"]),
    "typo in a file": (["up", "--config", "CONFIG"], ["atention", "attention"]),
    "no cell there": (["status", "--router", "127.0.0.1:1"], ["127.0.0.1:1", "UNAVAILABLE"]),
    "demo of odd width": (["demo-model", "DIRECTORY", "--hidden-size", "100"], ["hidden_size", "32", "100"]),
    "demo over a full directory": (["demo-model", "CHECKPOINT"], ["not an empty directory"]),
    "inspect of nothing": (["inspect", "/nowhere/config.json"], ["/nowhere/config.json"]),
}


@pytest.mark.parametrize("case", FLAGS)
def test_a_bad_flag_is_refused_by_name(case: str, tiny_checkpoint: Path, tmp_path: Path) -> None:
    arguments, words = FLAGS[case]
    config = tmp_path / "cell.toml"
    config.write_text(f'checkpoint = "{tiny_checkpoint}"\n[atention]\nmax_num_seqs = 4\n')
    places = {"CHECKPOINT": str(tiny_checkpoint), "CONFIG": str(config), "DIRECTORY": str(tmp_path / "demo")}
    done = moonshard(*(places.get(argument, argument) for argument in arguments))
    assert done.returncode == (1 if case == "no cell there" else 2), done.stderr
    assert all(word in done.stderr.replace("\n", "") for word in words), done.stderr
    assert "Traceback" not in done.stderr
