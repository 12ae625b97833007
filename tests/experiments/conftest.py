"""Fixtures of the tests of experiments."""

from pathlib import Path

import pytest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a run is to write; it is not there yet."""
    return tmp_path / "run"
