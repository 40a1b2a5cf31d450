"""One scale of heat for the terminal and for pictures: dark is idle, blue a fair share, white eight times that."""

import math
from itertools import pairwise

from rich.color import Color

# Heat in powers of two about a fair share, and the colour there.
_STOPS = (
    (-3.0, (13, 8, 60)),
    (0.0, (66, 96, 190)),
    (1.0, (200, 60, 120)),
    (2.0, (250, 150, 40)),
    (3.0, (255, 250, 220)),
)
IDLE = (8, 8, 16)


def rgb_of(heat: float) -> tuple[int, int, int]:
    """heat: load by the mean of the layer, 0 is idle."""
    if heat <= 0:
        return IDLE
    power = min(max(math.log2(heat), _STOPS[0][0]), _STOPS[-1][0])
    for (low, cold), (high, warm) in pairwise(_STOPS):
        if power <= high:
            share = (power - low) / (high - low)
            red, green, blue = (round(a + share * (b - a)) for a, b in zip(cold, warm, strict=True))
            return red, green, blue
    raise AssertionError("the last stop is the limit")


def colour_of(heat: float) -> Color:
    return Color.from_rgb(*rgb_of(heat))
