"""What every generator makes: messages in the API's form, and what a right last answer would be."""

import zlib
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]

_HELD_OUT_SALT = "7"
_HELD_OUT_OF = 12


@dataclass(frozen=True)
class Dialogue:
    """`messages` ends with the answer to learn. `key` names what is asked in these words: whether it is held out
    follows from it alone. `expected` is what evaluation compares with: a tool call, a number, an object or an intent.
    """

    task: str
    language: str
    messages: list[Message]
    key: str
    expected: Any
    thinking: bool = True
    tools: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_held_out(self) -> bool:
        """One question in twelve is never trained on."""
        return zlib.crc32(f"{_HELD_OUT_SALT} {self.key}".encode()) % _HELD_OUT_OF == 0


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, reasoning: str = "") -> Message:
    return {"role": "assistant", "content": text, "reasoning_content": reasoning}
