"""Reserved tokens by which a shaped template tells the router what a gateway's request does not carry.

A gateway renders and encodes the prompt itself and sends ids. The template is ours to give it (`bundle.py`), so the
template can leave notes between the ids (`shaped_template.py`), and the router takes them out again (`prompts.py`). No
user can write them: what spells a special token in a user's text is broken up by an `escape`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

PREFIX = "<|reserved_token_"
NUM_MARKS = 3


@dataclass(frozen=True, slots=True)
class Mark:
    """A special token: how it is spelt and its id."""

    name: str
    token_id: int


@dataclass(frozen=True, slots=True)
class Marks:
    """escape: stands inside what spells a special token and is none. thinking: the client asked for a thought by name.
    tools: behind it the tools' JSON as the client declared them, up to the end.
    """

    escape: Mark
    thinking: Mark
    tools: Mark


def find_marks(special_ids: Mapping[str, int]) -> Marks | None:
    """The last unused special tokens of a vocabulary by name; None where there are too few."""
    reserved = sorted(number for name, number in special_ids.items() if name.startswith(PREFIX))
    if len(reserved) < NUM_MARKS:
        return None
    names = {number: name for name, number in special_ids.items()}
    return Marks(*(Mark(names[number], number) for number in reserved[-NUM_MARKS:]))
