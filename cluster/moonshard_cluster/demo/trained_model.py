"""The demo that speaks: a very small trained checkpoint in the package; `trained/README.md` tells what it is."""

from pathlib import Path

TRAINED = Path(__file__).parent / "trained"
