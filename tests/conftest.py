"""Fixtures that every test may use."""

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the published tokenizer, template and configuration of K2.5; tests skip where it is absent."""
    data = SHARED / "data"
    if not data.is_dir():
        pytest.skip("the published K2.5 files are not here")
    return data
