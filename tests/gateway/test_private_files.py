"""What a gateway leaves on the disk of a machine with other users: names of tenants, hashes, amounts, addresses."""

import os
from collections.abc import Iterator

import pytest
from tests.gateway.lab import CITY, Lab

from madang.core import Rejected


@pytest.fixture
def no_mask() -> Iterator[None]:
    """The process's file mode mask takes nothing away, so what is private is so by our own doing."""
    before = os.umask(0)
    yield
    os.umask(before)


def test_nobody_else_can_read_or_enter_anything(lab: Lab, no_mask: None) -> None:
    site = lab.site()
    site.add_replica(lab.engine())
    for folder in (site.feed_dir, site.usage_dir):
        folder.mkdir(parents=True, mode=0o777)
    old = site.feed_dir / "inflight-0.bin"
    old.write_bytes(b"")
    old.chmod(0o644)
    lab.start(site)
    headers = {"Idempotency-Key": "k"}
    body = {"model": "qwen", "messages": [{"role": "user", "content": "x"}]}
    assert site.request("POST", "/v1/chat/completions", body, key=CITY.key, headers=headers).status == 200
    lab.stop(site)
    folders = {site.feed_dir, site.usage_dir, site.folder / "access", site.feed_dir / "once"}
    found = [path for folder in folders for path in folder.rglob("*")]
    assert {path.suffix for path in found} >= {".bin", ".log", ".acc", ".msgpack"}
    for path in {*found, *folders}:
        assert path == old or path.stat().st_mode & 0o077 == 0, path
    assert all(folder.stat().st_mode & 0o777 == 0o700 for folder in folders), "which closes files of older releases too"


def test_a_folder_that_is_everybodys_is_refused(lab: Lab) -> None:
    site = lab.site()
    site.feed_dir.mkdir(parents=True)
    site.feed_dir.chmod(0o1777)
    with pytest.raises(Rejected, match="shared by everybody"):
        lab.start(site)
