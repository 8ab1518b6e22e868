"""What every test shares: hypothesis profiles, and the folder of larger test data."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("fast", max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("deep", max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("MADANG_HYPOTHESIS_PROFILE", "fast"))


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what thousands of collected tests hold until the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder that MADANG_TEST_DATA names; the test skips without it."""
    value = os.environ.get("MADANG_TEST_DATA")
    if not value or not Path(value).is_dir():
        pytest.skip("MADANG_TEST_DATA names no folder: larger test data is not here")
    return Path(value)
