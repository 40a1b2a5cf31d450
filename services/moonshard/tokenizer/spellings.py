"""Finds what spells a special token in a text. Pure."""

import re
from collections.abc import Iterable
from itertools import groupby


def spelling_pattern(names: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the names, the longest that fits.

    Names are tried by their first two characters: nearly all of 256 begin with `<|`, and texts are full of lone `<`.
    """
    longest_first = sorted(filter(None, names), key=lambda name: (name[:2], -len(name)))
    groups = groupby(longest_first, key=lambda name: name[:2])
    alternatives = [f"{re.escape(first)}(?:{_rests(group)})" for first, group in groups]
    # A name of one character must not hide a longer one that begins with it.
    return re.compile("|".join(sorted(alternatives, key=len, reverse=True)) or r"(?!)")


def _rests(names: Iterable[str]) -> str:
    return "|".join(re.escape(name[2:]) for name in names)
