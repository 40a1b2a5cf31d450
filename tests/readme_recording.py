"""Records `moonshard up` and the published OpenAI quick starts in every language as an SVG, for the README.

    python -m tests.readme_recording FILE.svg

Nothing in it is typed by hand: the command runs in a pseudo-terminal, the questions go through the `openai` package.
"""

import argparse
import contextlib
import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openai import OpenAI
from rich.console import Console
from rich.text import Text

COLUMNS, ROWS = 118, 50
READY_S, ANSWER_S, END_S = 120.0, 120.0, 60.0
HELLOS = {
    "English": "How does a mixture of experts work?",
    "Portuguese": "Quem é você?",
    "German": "Wer bist du?",
    "French": "Qui es-tu ?",
    "Russian": "Почему корень из двух иррационален?",
    "Indonesian": "Siapa kamu?",
    "Chinese": "你是谁？",  # noqa: RUF001
}
THINK = "which one is bigger, 9.11 or 9.9? think carefully."
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}
WEATHER = "What's the weather like in Beijing today? Use the tool to check."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("svg", type=Path)
    given = parser.parse_args()
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    with cell() as (screen, address):
        console.print(Text("$ moonshard up", style="bold green"))
        console.print(Text.from_ansi(screen))
        quick_starts(console, OpenAI(base_url=f"{address}/v1", api_key="any", timeout=ANSWER_S, max_retries=0))
    console.save_svg(str(given.svg), title="moonshard")


@contextmanager
def cell() -> Iterator[tuple[str, str]]:
    """(what `moonshard up` shows once it serves, address of its HTTP); ended with Ctrl-C."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    command = [sys.executable, "-m", "moonshard_cluster.cli", "up", "--port", "0", "--http-port", "0"]
    command += ["--log-dir", tempfile.mkdtemp()]
    environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor"}
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        try:
            screen = until_ready(leader)
            (address,) = re.findall(r"OpenAI API on (http://\S+?)/v1", re.sub(r"\x1b\[[0-9;]*m", "", screen))
            yield settled(screen), address
        finally:
            process.send_signal(signal.SIGINT)
            drain(leader, process)
            os.close(leader)


def until_ready(leader: int) -> str:
    """All that was written until the line that ends the welcome."""
    seen, deadline = b"", time.monotonic() + READY_S
    while b"try:" not in seen or not seen.rstrip(b" ").endswith(b"\n"):
        readable, _, _ = select.select([leader], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            raise SystemExit(f"not ready within {READY_S:g} s:\n{seen.decode(errors='replace')}")
        seen += os.read(leader, 65536)
    return seen.decode(errors="replace").replace("\r\n", "\n")


def settled(screen: str) -> str:
    """Without the progress bars, which have erased themselves by then."""
    last = screen.rfind("\x1b[?25h")
    text = screen[last + len("\x1b[?25h") :] if last >= 0 else screen
    # Cursor movements and erasures say nothing any more; colours stay.
    text = re.sub(r"\x1b\[[0-9;?]*[A-HJKSTfhlnsu]", "", text).replace("\r", "")
    return re.sub(r"logs in \S+", "logs in ~/.cache/moonshard/logs", text).strip("\n")


def drain(leader: int, process: "subprocess.Popen[bytes]") -> None:
    """Read on until the command has ended: a full terminal would keep it."""
    deadline = time.monotonic() + END_S
    while process.poll() is None and time.monotonic() < deadline:
        if select.select([leader], [], [], 0.2)[0]:
            with contextlib.suppress(OSError):
                os.read(leader, 65536)
    if process.poll() is None:
        process.kill()


def quick_starts(console: Console, client: Any) -> None:
    for language, question in HELLOS.items():
        told = ask(client, question, thinking=False)
        show(console, f"{language}, instant", question, "", told["content"])
    told = ask(client, THINK, thinking=True)
    show(console, "thinking", THINK, told["reasoning_content"], told["content"])
    first = ask(client, WEATHER, thinking=True, tools=[TOOL])
    (call,) = first["tool_calls"]
    function = call["function"]
    show(console, "tool call", WEATHER, first["reasoning_content"], f"{function['name']}({function['arguments']})")
    turns = [
        first,
        {"role": "tool", "tool_call_id": call["id"], "content": json.dumps({"condition": "sunny", "temperature": 21})},
    ]
    last = ask(client, WEATHER, thinking=True, tools=[TOOL], turns=turns)
    show(console, "its answer", '{"condition": "sunny", "temperature": 21}', last["reasoning_content"], last["content"])


def ask(client: Any, question: str, thinking: bool, **more: Any) -> dict[str, Any]:
    """The assistant's message as a dictionary, empty fields left out."""
    messages = [{"role": "user", "content": question}, *more.get("turns", [])]
    options = {} if thinking else {"extra_body": {"thinking": {"type": "disabled"}}}
    if "tools" in more:
        options["tools"] = more["tools"]
    answer = client.chat.completions.create(
        model="kimi-k2.5", messages=messages, max_tokens=256, temperature=0, **options
    )
    found = answer.choices[0].message.model_dump()
    return {"content": "", "reasoning_content": "", **{key: value for key, value in found.items() if value}}


def show(console: Console, title: str, question: str, thought: str, answer: str) -> None:
    console.print()
    console.print(Text(f"# openai, {title}", style="dim"))
    console.print(Text("> ", style="bold green") + Text(question, style="bold"))
    if thought:
        console.print(Text(thought.strip(), style="italic dim"))
    console.print(Text(answer.strip()))


if __name__ == "__main__":
    main()
