"""`moonshard generate` and `moonshard chat`: talk to a running cell."""

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console

from moonshard.errors import MoonshardError
from moonshard.v1 import inference_pb2 as pb
from moonshard_cluster.client import DEFAULT_ROUTER, Client

RouterOption = Annotated[str, typer.Option("--router", help="HOST:PORT of the router")]
MaxTokens = Annotated[int | None, typer.Option("--max-tokens", help="tokens to generate at most")]
Temperature = Annotated[float | None, typer.Option("--temperature", help="0 is greedy")]
TopP = Annotated[float | None, typer.Option("--top-p", help="nucleus, in (0, 1]")]
TopK = Annotated[int | None, typer.Option("--top-k", help="0 is off")]
Seed = Annotated[int | None, typer.Option("--seed", help="same seed and prompt, same tokens", min=0)]
TimeoutOption = Annotated[float, typer.Option("--timeout", help="deadline in seconds", min=0.001)]


def generate(
    prompt: Annotated[str, typer.Argument(help="text to continue, as it is: no chat template")],
    router: RouterOption = DEFAULT_ROUTER,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    ids: Annotated[bool, typer.Option("--ids", help="print token ids instead of text")] = False,
    timeout_s: TimeoutOption = 600.0,
) -> None:
    """Continue a text."""
    sampling = pb.SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, max_tokens=max_tokens)
    with Client(router) as client:
        request = pb.GenerateRequest(text=prompt, sampling=sampling)
        if ids:
            tokens = [t for response in client.generate(request, timeout_s) for t in response.token_ids]
            typer.echo(" ".join(map(str, tokens)))
        else:
            stream(client.generate(request, timeout_s))


def chat(
    message: Annotated[str | None, typer.Argument(help="one question; without it, a conversation")] = None,
    router: RouterOption = DEFAULT_ROUTER,
    system: Annotated[str | None, typer.Option("--system", help="system prompt")] = None,
    thinking: Annotated[bool, typer.Option("--thinking/--instant", help="let the model think first")] = True,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    timeout_s: TimeoutOption = 600.0,
) -> None:
    """Talk to the model through the checkpoint's chat template."""
    sampling = pb.SamplingParams(temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, max_tokens=max_tokens)
    history = [pb.Message(role="system", content=system)] if system is not None else []
    with Client(router) as client:
        for question in [message] if message is not None else _questions():
            history.append(pb.Message(role="user", content=question))
            request = pb.ChatRequest(messages=history, sampling=sampling, thinking=thinking)
            try:
                answer = stream(client.chat(request, timeout_s))
            except MoonshardError as error:
                if message is not None:
                    raise
                # A conversation survives a refused turn.
                history.pop()
                Console(stderr=True).print(f"error: {error}", style="red", markup=False)
                continue
            # Earlier turns are shown to the model without their reasoning (specification 5.2).
            history.append(pb.Message(role="assistant", content=answer))


def _questions() -> Iterator[str]:
    """Lines the user types, until end of file."""
    while True:
        try:
            question = typer.prompt("you", prompt_suffix="> ")
        except typer.Abort:
            typer.echo()
            return
        yield question


def stream(responses: Iterator[pb.GenerateResponse] | Iterator[pb.ChatResponse]) -> str:
    """Print text as it comes, reasoning dimmed, then a line of figures; returns the text without the reasoning."""
    text, in_thought, finish = "", False, pb.Finish()
    for response in responses:
        thought, new = _parts(response)
        typer.secho(thought, nl=False, dim=True)
        in_thought = in_thought or bool(thought)
        if new and in_thought:
            typer.echo("\n")
            in_thought = False
        typer.echo(new, nl=False)
        text += new
        if response.HasField("finish"):
            finish = response.finish
    typer.echo()
    _figures(finish)
    return text


def _parts(response: pb.GenerateResponse | pb.ChatResponse) -> tuple[str, str]:
    """Reasoning and text."""
    if isinstance(response, pb.GenerateResponse):
        return "", response.text
    return response.reasoning_content, response.content


def _figures(finish: pb.Finish) -> None:
    usage, timings = finish.usage, finish.timings
    decoded = max(usage.completion_tokens - 1, 0)
    rate = f", {decoded / timings.decode_s:.1f} tokens/s" if decoded and timings.decode_s > 0 else ""
    reason = pb.FinishReason.Name(finish.reason).removeprefix("FINISH_REASON_").lower()
    first = timings.queue_s + timings.prefill_s
    Console(stderr=True).print(
        f"[{usage.prompt_tokens} + {usage.completion_tokens} tokens, first after {first:.2f} s{rate}, {reason}]",
        style="dim",
        markup=False,
        highlight=False,
    )
