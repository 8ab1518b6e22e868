"""What the README tells people to type works as printed."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from tests.e2e.embedded import MADANG

pytestmark = [pytest.mark.federation]

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
EXAMPLES = [block for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) if "curl" in block]
EXPECTED = ["서울", '"embedding"', "residency_violation"]


def test_every_example_has_an_expectation():
    assert len(EXAMPLES) == len(EXPECTED)


@pytest.mark.parametrize(("block", "expected"), list(zip(EXAMPLES, EXPECTED, strict=True)))
def test_an_example_runs_as_printed(federation, block, expected):
    # Only what differs between this federation and the reader's is replaced: the command's place and the ports.
    here = re.sub(r":77(\d\d)\b", lambda m: f":{federation.base_port + int(m[1])}", block)
    here = here.replace(".venv/bin/madang", str(MADANG))
    environ = {**os.environ, "MADANG_STATE": str(federation.state_dir)}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", here], capture_output=True, text=True, timeout=60, env=environ, check=False
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout, done.stdout
