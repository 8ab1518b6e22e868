"""`madang audit`: it lists, and believes nobody when it verifies."""

import json
import stat

import msgspec
import pytest

from madang.wire.audit import ChainHead, next_row

COUNT = 1005


@pytest.fixture(scope="module")
def rows():
    head, made = ChainHead(), []
    for number in range(COUNT):
        row = next_row(
            head, at_s=1.8e9 + number, actor="kim", action="key.put", target=f"k{number}", detail={"n": number}
        )
        made.append({**row, "detail": msgspec.Raw(row["detail"].encode())})
        head = ChainHead(row["seq"], row["hash"])
    return made


@pytest.fixture
def chain(hub, rows):
    """The hub's chain, a page at a time, as its API gives it; a test may change it."""
    held = list(rows)

    def answer(query):
        asked = dict(pair.split("=") for pair in query.split("&") if pair)
        after, limit = int(asked.get("after", 0)), int(asked.get("limit", 100))
        found = [row for row in held if row["seq"] > after]
        page = found[-limit:] if asked.get("newest") == "true" else found[:limit]
        return 200, msgspec.json.encode(page)

    hub.answers["GET", "/api/v1/audit"] = answer
    return held


def test_the_newest_are_listed_with_who_did_what(ask, chain):
    done = ask("audit", "list", "--limit", "3")
    assert done.exit_code == 0, done.output
    assert "k1004" in done.output
    assert "k1001" not in done.output
    found = json.loads(ask("audit", "list", "--limit", "2", "--json").stdout)
    assert [row["seq"] for row in found["rows"]] == [1004, 1005]


@pytest.mark.parametrize(
    ("detail", "shown"),
    [
        ({"reason": "the mains are lost", "state": "sent", "at_s": 1.0}, "sent: the mains are lost"),
        ({"reason": "trial"}, "trial"),
        ({"reason": "", "state": "confirmed", "at_s": 1.0}, "confirmed"),
        ({"key_id": "k", "expires_at_s": None, "sites": []}, '{"key_id":"k"}'),
        ({}, "-"),
        ({"text": "x" * 100}, "…"),
    ],
)
def test_of_a_detail_people_see_what_became_of_it_and_why(ask, hub, rows, detail, shown):
    hub.answers["GET", "/api/v1/audit"] = (200, msgspec.json.encode([{**rows[0], "detail": detail}]))
    assert shown in ask("audit", "list").output


def test_what_is_asked_for_reaches_the_api(ask, hub, chain):
    ask("audit", "list", "--actor", "kim", "--action", "key.", "--target", "k1")
    query = hub.calls[-1][2]
    assert all(part in query for part in ("actor=kim", "action=key.", "target=k1", "newest=true"))


def test_a_whole_chain_is_verified_here_and_its_head_found_again(ask, chain):
    done = ask("audit", "verify")
    assert done.exit_code == 0, done.output
    assert "intact: 1005 rows of the hub" in done.output
    head = f"1005:{chain[-1]['hash']}"
    assert f"--head {head}" in done.output
    assert ask("audit", "verify", "--head", head).exit_code == 0
    assert ask("audit", "verify", "--head", f"2:{chain[1]['hash']}").exit_code == 0


def test_a_changed_row_is_named(ask, chain):
    chain[1001] = {**chain[1001], "actor": "nobody"}
    done = ask("audit", "verify")
    assert done.exit_code == 1
    assert "row 1002 was changed, or is missing" in done.output
    assert json.loads(ask("audit", "verify", "--json").stdout)["broken_at_seq"] == 1002


def test_an_end_that_was_cut_off_is_found_by_the_head_of_before(ask, chain):
    head = f"1005:{chain[-1]['hash']}"
    del chain[1000:]
    assert ask("audit", "verify").exit_code == 0, "a shorter chain holds"
    done = ask("audit", "verify", "--head", head)
    assert done.exit_code == 1
    assert "row 1005" in done.output
    assert ask("audit", "verify", "--head", "17").exit_code == 2


def test_a_copy_is_closed_to_others_and_verified_without_anybody(ask, madang, chain, tmp_path):
    out = tmp_path / "audit.jsonl"
    assert ask("audit", "export", "--out", str(out)).exit_code == 0
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert "is not there yet" in ask("audit", "export", "--out", str(out)).output
    done = madang("audit", "verify", str(out))
    assert done.exit_code == 0, done.output
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:4] + lines[5:]))
    assert "row 5 was changed, or is missing" in madang("audit", "verify", str(out)).output
    out.write_bytes(lines[0] + b"{}\n")
    assert "line 2 is no row" in madang("audit", "verify", str(out)).output
    assert madang("audit", "verify", str(tmp_path / "nothing")).exit_code == 1
    assert madang("audit", "verify", str(out), "--site", "daegu").exit_code == 2


def test_what_was_noted_of_an_empty_chain_is_part_of_every_later_one(ask, chain):
    rows = list(chain)
    del chain[:]
    done = ask("audit", "verify")
    head = done.output.split("--head ")[1].strip()
    chain += rows
    assert ask("audit", "verify", "--head", head).exit_code == 0


def test_a_copy_that_broke_off_is_not_left_under_the_name_that_was_asked_for(ask, hub, rows, tmp_path):
    def answer(query):
        if "after=0" in query:
            return 200, msgspec.json.encode(rows[:1000])
        return 503, hub.error("unavailable", "the disk is away")

    hub.answers["GET", "/api/v1/audit"] = answer
    done = ask("audit", "export", "--out", str(tmp_path / "audit.jsonl"))
    assert done.exit_code == 1
    assert "the disk is away" in done.output
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


def test_a_copy_with_bytes_that_are_no_text_does_not_hold(madang, rows, tmp_path):
    line = msgspec.json.encode({**rows[0], "detail": msgspec.Raw(b'{"n":"\xff"}')})
    (tmp_path / "copy").write_bytes(line + b"\n")
    assert "row 1 was changed" in madang("audit", "verify", str(tmp_path / "copy")).output
