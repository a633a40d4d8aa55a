"""Where the real data sets, weights and reference vectors are found, and how a test says it has none."""

import os
from pathlib import Path

import pytest

ASSETS = Path(os.environ.get("GMS_LMM_ASSETS", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder with data/, splits/, weights/ and vectors/; skips where it is absent."""
    if not ASSETS.is_dir():
        pytest.skip(f"no assets at {ASSETS}: set GMS_LMM_ASSETS to a folder with data/, weights/, vectors/")
    return ASSETS
