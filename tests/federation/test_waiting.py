"""Who is to blame when something does not come up, judged from the supervisor's record and the log files."""

import os

import pytest

from madang.federation.layout import folders, make_layout
from madang.federation.state import Credentials, SiteCredentials
from madang.federation.waiting import Watcher, read_tail
from madang.runtime.process import make_ref
from madang.runtime.supervision import ProcessRecord, SupervisorRecord, encode_record

BASE = 29900  # nothing listens there: every part looks as if it had not started


@pytest.fixture
def layout(tmp_path):
    made = make_layout(tmp_path, tmp_path, BASE)
    for folder in folders(made):
        folder.mkdir(exist_ok=True)
    return made


@pytest.fixture
def watch(layout):
    made = []

    def start():
        sites = tuple(SiteCredentials(name=s.name, url="", admin_url="", admin_token="") for s in layout.sites[1:])
        known = Credentials(hub_url="", national_url="", admin_token="", sites=sites)
        made.append(Watcher(layout, known, "mdg_x"))
        return made[-1]

    yield start
    for watcher in made:
        watcher.close()


def record(layout, *processes):
    me = make_ref(os.getpid())
    layout.record_path.write_bytes(
        encode_record(SupervisorRecord(supervisor=me, session=os.getsid(0), marker="m", processes=processes))
    )


def process(layout, name, *, is_alive=True, ready_url="", **changes):
    ref = make_ref(os.getpid()) if is_alive else None
    return ProcessRecord(name=name, log_path=layout.log_dir / f"{name}.log", ref=ref, ready_url=ready_url, **changes)


def test_a_process_that_is_down_is_to_blame_before_one_that_is_not_ready(layout, watch):
    slow = process(layout, "hub", ready_url=f"http://127.0.0.1:{BASE}/healthz")
    down = process(layout, "gumi-site", is_alive=False, last_exit="exit 1", restarts=2, note="starts again in 0.5 s")
    record(layout, slow, down)
    (layout.log_dir / "gumi-site.log").write_text("first\nlast words\n")
    culprit = watch().find_culprit()
    assert culprit.name == "gumi-site"
    assert culprit.reason == "starts again in 0.5 s (2 restarts; last end: exit 1)"
    assert culprit.log_lines == ("first", "last words")
    record(layout, slow)
    assert watch().find_culprit().name == "hub"
    assert watch().find_culprit().reason == "runs, and does not become ready"


def test_only_what_ends_again_and_again_since_we_watch_is_looping(layout, watch):
    record(layout, process(layout, "hub", restarts=100))
    watcher = watch()
    assert watcher.find_looping() is None
    record(layout, process(layout, "hub", restarts=107))
    assert watcher.find_looping() is None
    record(layout, process(layout, "hub", restarts=108))
    assert watcher.find_looping().name == "hub"


def test_nothing_started_is_shown_as_such_and_blames_nobody(layout, watch):
    views = watch().look()
    assert [(view.name, view.text, view.is_ready) for view in views] == [
        (name, "starts", False) for name in ("hub", "national", "daegu", "gumi", "gwangju")
    ]
    assert watch().find_culprit() is None


def test_the_tail_of_a_log_is_bounded(tmp_path):
    path = tmp_path / "log"
    assert read_tail(path) == ()
    path.write_bytes(b"\xff" + b"x" * 200_000 + b"\n" + b"".join(b"line %d\n" % n for n in range(100)))
    assert read_tail(path) == tuple(f"line {n}" for n in range(85, 100))
