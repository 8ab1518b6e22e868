"""Fixtures of the engine tests."""

import pytest


@pytest.fixture
def twin_weights(tmp_path):
    """A file in the place of weights that lets a twin behave as usual."""
    path = tmp_path / "weights"
    path.write_text("{}", encoding="utf-8")
    return path
