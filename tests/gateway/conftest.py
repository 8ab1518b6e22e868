"""Fixtures of the gateway's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.gateway.lab import Lab


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with Lab(tmp_path) as one:
        yield one
