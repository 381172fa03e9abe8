"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of data and weights that stands beside the checkout (or at $OCTAVO_SHARED)."""
    folder = Path(os.environ.get("OCTAVO_SHARED") or Path(__file__).parents[2] / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the shared data, and {folder / 'data'} is not there (set OCTAVO_SHARED)")
    return folder
