"""Malformed HTTP requests by the thousand: valid bodies with a few places spoilt, and bytes that are no requests.

Written by ourselves because smg publishes no OpenAPI document that schemathesis could read.
"""

import copy
import http.client
import json
import random
import string
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

# A request that the mutation left valid may run for long: its client leaves.
PATIENCE_S = 2.0

_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
_CHAT: dict[str, Any] = {
    "model": "kimi-tiny",
    "messages": [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "a", "content": "x"},
    ],
    "max_tokens": 3, "temperature": 1.0, "top_p": 0.9, "n": 1, "stop": ["z"], "stream": False, "seed": 1,
    "logprobs": True, "top_logprobs": 1, "tools": [_TOOL], "tool_choice": "auto",
    "response_format": {"type": "text"}, "thinking": {"type": "disabled"},
}  # fmt: skip
_MESSAGES: dict[str, Any] = {
    "model": "kimi-tiny", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}], "system": "s",
    "tools": [{"name": "f", "input_schema": {"type": "object"}}], "thinking": {"type": "disabled"},
}  # fmt: skip
_COMPLETION: dict[str, Any] = {"model": "kimi-tiny", "prompt": "hi", "max_tokens": 3, "stop": "z", "logprobs": 1}
_RESPONSE: dict[str, Any] = {"model": "kimi-tiny", "input": "hi", "max_output_tokens": 16, "store": False}
BODIES = {
    "/v1/chat/completions": _CHAT,
    "/v1/messages": _MESSAGES,
    "/v1/completions": _COMPLETION,
    "/v1/responses": _RESPONSE,
}
ODD: list[Any] = [
    None, True, False, 0, -1, 2**31, 2**63, 2**70, 1e308, -0.0, "", "x" * 5000, "\x00", "\ud800", "<|im_end|>", "é",
    [], {}, [[]], [None], {"": {}}, {"type": "object"}, "auto", "required", ["a"] * 300,
    {"a": {"b": {"c": [1, {"d": None}]}}},
]  # fmt: skip


@dataclass(frozen=True)
class Malformed:
    method: str
    path: str
    body: bytes
    content_type: str


def malformed(seed: int) -> Iterator[Malformed]:
    """Without end; the same for the same seed."""
    rng = random.Random(seed)
    while True:
        path = rng.choice(list(BODIES))
        method = "POST" if rng.random() < 0.95 else rng.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
        content_type = "application/json" if rng.random() < 0.95 else rng.choice(["", "text/plain", "multipart/x"])
        yield Malformed(method, _path(rng, path), _body(rng, BODIES[path]), content_type)


def _path(rng: random.Random, path: str) -> str:
    if rng.random() < 0.95:
        return path
    return path + rng.choice(["/", "/../x", "?a=%00", "/%ff", "x" * 300])


def _body(rng: random.Random, valid: dict[str, Any]) -> bytes:
    kind = rng.random()
    if kind < 0.05:
        return rng.randbytes(rng.randrange(200))
    body = copy.deepcopy(valid)
    for _ in range(rng.randint(1, 3)):
        _spoil(rng, body)
    text = json.dumps(body).encode()
    if kind < 0.12:
        return text[: rng.randrange(len(text))]
    if kind < 0.15:
        return b"[" * rng.randrange(1, 5000)
    if kind < 0.2:
        at = rng.randrange(len(text))
        return text[:at] + rng.choice(string.printable).encode() + text[at + 1 :]
    return text


def _spoil(rng: random.Random, body: dict[str, Any]) -> None:
    """Change one place of a JSON value, wherever it lies."""
    at: Any = body
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(at[key], dict | list) and at[key] and rng.random() < 0.7:
            at = at[key]
            continue
        if rng.random() < 0.2:
            del at[key]
        elif isinstance(at, dict) and rng.random() < 0.1:
            at["".join(rng.choices(string.ascii_letters, k=6))] = rng.choice(ODD)
        else:
            at[key] = copy.deepcopy(rng.choice(ODD))
        return


def send_all(url: str, seed: int, num_requests: int, num_threads: int = 16) -> Counter[int]:
    """Send them all; how often each status came, 0 for requests that were left or could not even be written."""
    host = urlsplit(url).netloc
    with ThreadPoolExecutor(num_threads) as pool:
        return Counter(pool.map(lambda request: _send(host, request), islice(malformed(seed), num_requests)))


def _send(host: str, request: Malformed) -> int:
    connection = http.client.HTTPConnection(host, timeout=PATIENCE_S)
    try:
        headers = {"content-type": request.content_type} if request.content_type else {}
        connection.request(request.method, request.path, request.body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException, ValueError):
        return 0
    finally:
        connection.close()
