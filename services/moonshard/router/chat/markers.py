"""The tokens that give a reply its parts. Source: kimi-k2.5.md sections 5.1, 5.4 and 5.5."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from moonshard.tokenizer import Tokenizer


class Marker(Enum):
    THOUGHT = "<think>"
    THOUGHT_END = "</think>"
    SECTION = "<|tool_calls_section_begin|>"
    SECTION_END = "<|tool_calls_section_end|>"
    CALL = "<|tool_call_begin|>"
    ARGUMENTS = "<|tool_call_argument_begin|>"
    CALL_END = "<|tool_call_end|>"
    OTHER = ""  # any other control token

    @property
    def is_of_calls(self) -> bool:
        return self.value.startswith("<|tool_call")


# Not a token, but models sometimes write it out in front of a call.
SECTION_MISSPELLED = "<|tool_call_section_begin|>"


@dataclass(frozen=True, slots=True)
class Markers:
    """kinds: of every special token. spellings: of the same ids."""

    kinds: Mapping[int, Marker]
    spellings: Mapping[int, str]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Markers":
        named = {marker.value: marker for marker in Marker if marker.value}
        tokens = tokenizer.special_tokens
        kinds = {token_id: named.get(name, Marker.OTHER) for name, token_id in tokens.items()}
        return cls(kinds, {token_id: name for name, token_id in tokens.items()})
