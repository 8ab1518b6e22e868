"""What of a model is where: artifacts for chips, files on their way, replicas without a place.

Owns how that is told. Refuses to judge: the hub and the sites do. Called by `madang model` and `madang service`.
"""

from itertools import groupby
from typing import TYPE_CHECKING, Any

from madang.cli.access import Access, rows_of
from madang.cli.terminal import Row, field, print_json, print_table, render_bytes, render_duration, say

if TYPE_CHECKING:
    from madang.runtime.admin_client import AdminClient

_AT_WORK = ("ready", "fetchable")
_COVERAGE = (
    ("SITE", field("site")),
    ("CHIP", field("chip_kind")),
    ("SDK", field("sdk_version")),
    ("CHIPS", field("chips")),
    ("STATE", field("state")),
    ("ARTIFACT", field("artifact_id")),
    ("MISSING", field("text")),
    ("TO DO", field("next_step")),
)
_UNPLACED = (("SITE", field("site")), ("REPLICA", field("replica_id")), ("WHY", field("reason")))


def print_coverage(rows: list[dict[str, Any]]) -> None:
    """Print which chips have an artifact, what is missing where, and what to do about it."""
    print_table("chips", _COVERAGE, rows)


def print_unplaced(rows: list[dict[str, Any]]) -> None:
    """Print replicas without a place, if there are any."""
    if rows:
        print_table("without a place", _UNPLACED, rows)


def print_transfers(rows: list[dict[str, Any]], *, is_empty_told: bool = False) -> None:
    """Print files on their way, if there are any."""
    if not rows and not is_empty_told:
        return
    print_table(
        "transfers",
        (
            ("SITE", field("site")),
            ("INTO", field("where")),
            ("MODEL", field("model")),
            ("FILE", field("name")),
            ("STATE", field("state")),
            ("DONE", _done),
            ("RATE", lambda row: f"{render_bytes(row['rate_bytes_s'])}/s" if row.get("rate_bytes_s") else None),
            ("LEFT", _left),
            ("RESUMED AT", lambda row: render_bytes(row["kept_bytes"]) if row.get("kept_bytes") else None),
            ("FROM", field("source")),
            ("BAD CHUNKS", lambda row: row.get("wrong_chunks") or None),
            ("WHY", field("reason")),
        ),
        rows,
    )


def _done(row: Row) -> str:
    done, size = row.get("done_bytes", 0), row.get("size_bytes", 0)
    return f"{render_bytes(done)} of {render_bytes(size)} ({done / max(size, 1):.0%})"


def _left(row: Row) -> str | None:
    rate = row.get("rate_bytes_s") or 0.0
    return render_duration((row["size_bytes"] - row["done_bytes"]) / rate) if rate > 0 else None


def list_transfers(access: Access, site: str | None, model: str | None) -> None:
    """Print what comes into which cache, all of it or one model's."""
    with access.hub_or_site(site) as api:
        rows = rows_of(api.get("/api/v1/transfers", {"model": model}), "transfers")
    if access.is_json:
        print_json({"transfers": rows})
    else:
        print_transfers(rows, is_empty_told=True)


def read_optional(api: "AdminClient", path: str, query: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows, none from a hub of an older release that has no such listing."""
    from madang.runtime.admin_client import NotFound

    try:
        return rows_of(api.get(path, query), path.rpartition("/")[2])
    except NotFound:
        return []


def tell_gaps(hub: "AdminClient", service: str) -> None:
    """Say at which sites a service that was just made cannot run, what is missing there, and what to do."""
    rows = read_optional(hub, f"/api/v1/services/{service}/coverage", {})
    for site, found in groupby(sorted(rows, key=lambda row: str(row["site"])), key=lambda row: row["site"]):
        gaps = list(found)
        if any(row["state"] in _AT_WORK for row in gaps):
            continue
        for row in gaps:
            chips = f"{row['chips']} {row['chip_kind']} {row['sdk_version']}".strip() if row["chips"] else "no chips"
            say(f"  {service} cannot run at {site} yet ({chips}): {row['text']}")
            if row.get("next_step"):
                say(f"    try: {row['next_step']}")
