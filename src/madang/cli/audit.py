"""`madang audit …`: what was done to a federation or a site, by whom, and whether that was changed afterwards.

Owns nothing; asks the hub's admin API, or a site's own. `verify` does not take a program's word: it reads the rows and
follows the chain itself, those of a file as well.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from madang.cli.access import Access, SiteOption, command
from madang.cli.terminal import print_json, print_table, say, show_progress
from madang.core import Rejected

if TYPE_CHECKING:
    from madang.runtime.admin_client import AdminClient
    from madang.wire.audit import AuditRow, ChainHead

_PAGE = 1000
_PAGES_MAX = 1_000_000
_DETAIL_CHARS = 60


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True,
        help="What was done and by whom: the hub's chain, or a site's own.",
        rich_markup_mode=None,
    )
    app.add_typer(group, name="audit")
    command(group, "list")(_list)
    command(group, "verify")(_verify)
    command(group, "export")(_export)


def _list(
    access: Access,
    site: SiteOption = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=_PAGE, help="The newest so many.")] = 50,
    actor: Annotated[str | None, typer.Option("--actor", help="Only what this one did.")] = None,
    action: Annotated[
        str | None, typer.Option("--action", help="Only actions that begin so, such as key. or facility.")
    ] = None,
    target: Annotated[str | None, typer.Option("--target", help="Only what was done to this.")] = None,
) -> None:
    """List what was done, the newest last."""
    asked = {"newest": True, "limit": limit, "actor": actor, "action": action, "target": target}
    with access.hub_or_site(site) as api:
        rows = api.get("/api/v1/audit", asked)
    if access.is_json:
        print_json({"site": site, "rows": rows})
        return
    from madang.cli.values import render_instant

    print_table(
        f"audit of {_whose(site)}",
        (
            ("ROW", lambda row: str(row["seq"])),
            ("WHEN", lambda row: render_instant(row["at_s"])),
            ("WHO", lambda row: row["actor"]),
            ("DID", lambda row: row["action"]),
            ("TO", lambda row: row["target"]),
            ("DETAIL", lambda row: _short(row["detail"])),
        ),
        rows,
    )


def _short(detail: Any) -> str:
    """Return what a person wants first of a detail: what became of it and why, else all that is in it."""
    import msgspec

    if isinstance(detail, dict) and (detail.get("state") or detail.get("reason")):
        text = ": ".join(str(detail[name]) for name in ("state", "reason") if detail.get(name))
    elif isinstance(detail, dict):
        known = {name: value for name, value in detail.items() if value not in (None, "", [], {})}
        text = msgspec.json.encode(known).decode() if known else ""
    else:
        text = msgspec.json.encode(detail).decode()
    return text if len(text) <= _DETAIL_CHARS else text[: _DETAIL_CHARS - 1] + "…"


def _whose(site: str | None) -> str:
    return "the hub" if site is None else f"site {site}"


def _verify(
    access: Access,
    file: Annotated[
        Path | None, typer.Argument(help="A copy made by export, instead of asking the hub or a site.")
    ] = None,
    site: SiteOption = None,
    head: Annotated[
        str | None,
        typer.Option("--head", metavar="ROW:HASH", help="What verify said before: the chain must still hold that row."),
    ] = None,
) -> None:
    """Verify that no row was changed, added between or removed; with --head, that none was cut off the end either."""
    import msgspec

    from madang.wire.audit import ChainHead, follow, verdict_of

    if file is not None and site is not None:
        raise typer.BadParameter("a file says itself whose chain it is", param_hint="--site")
    known = None if head is None else _parse_head(head)
    # Of a chain that was empty every chain is a continuation.
    at, broken_at, is_known_there = ChainHead(), None, known in (None, ChainHead())
    for rows in _read_file(file) if file is not None else _read_api(access, site):
        is_known_there = is_known_there or any((row.seq, row.hash) == (known.seq, known.hash) for row in rows if known)
        at, broken_at = follow(at, rows)
        if broken_at is not None:
            break
    whose = str(file) if file is not None else _whose(site)
    verdict = verdict_of(at, broken_at)
    if access.is_json:
        print_json({"of": whose, "is_head_there": is_known_there, **msgspec.to_builtins(verdict)})
    if broken_at is not None:
        raise Rejected(
            f"the audit chain of {whose} does not hold: row {broken_at} was changed, or is missing",
            next_step="keep a copy of the database as it is: what to look at is in docs/operations.md, The audit chain",
        )
    if not is_known_there:
        assert known is not None
        raise Rejected(
            f"the audit chain of {whose} holds, and is another than before: row {known.seq} with hash "
            f"{known.hash[:12]}… is not in it",
            next_step="rows were cut off its end, or all of it was written anew; compare it with a copy from before",
        )
    if not access.is_json:
        say(f"intact: {at.seq} rows of {whose}")
        say(f"note down, elsewhere, for the next time: --head {at.seq}:{at.hash}")


def _parse_head(text: str) -> "ChainHead":
    from madang.wire.audit import ChainHead

    row, _, sha256 = text.partition(":")
    if not row.isdecimal() or len(sha256) != 64 or not set(sha256) <= set("0123456789abcdef"):
        raise typer.BadParameter("expected ROW:HASH as verify prints it, such as 17:4be0…", param_hint="--head")
    return ChainHead(int(row), sha256)


def _export(
    access: Access,
    out: Annotated[Path, typer.Option("--out", help="File to make: one JSON object a row.")],
    site: SiteOption = None,
) -> None:
    """Copy the chain into a file that verify reads, for those who keep it and those who look into it later."""
    # Half a chain holds as well as a whole one, so that it must never stand under the name that was asked for.
    part = out.with_name(f"{out.name}.part")
    try:
        if out.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as output:
            at, broken_at = _copy(_read_api(access, site), output)
        part.rename(out)
    except OSError as error:
        raise Rejected(f"cannot make {out}: {error.strerror}", next_step="name a file that is not there yet") from error
    finally:
        part.unlink(missing_ok=True)
    if access.is_json:
        print_json({"of": _whose(site), "file": str(out), "rows": at.seq, "broken_at_seq": broken_at})
    else:
        say(f"the audit chain of {_whose(site)} is in {out}; verify it with: madang audit verify {out}")
    if broken_at is not None:
        raise Rejected(
            f"it is there as it was read, and does not hold: row {broken_at} was changed, or is missing",
            next_step="keep it: what to look at is in docs/operations.md, The audit chain",
        )


def _copy(pages: Iterator[list["AuditRow"]], output: BinaryIO) -> tuple["ChainHead", int | None]:
    """Write rows as lines, durably; returns what following them found."""
    import msgspec

    from madang.wire.audit import ChainHead, follow

    at, broken_at = ChainHead(), None
    for rows in pages:
        output.writelines(msgspec.json.encode(row) + b"\n" for row in rows)
        if broken_at is None:
            at, broken_at = follow(at, rows)
    output.flush()
    os.fsync(output.fileno())
    return at, broken_at


def _read_api(access: Access, site: str | None) -> Iterator[list["AuditRow"]]:
    """Yield pages of the chain, oldest first."""
    with access.hub_or_site(site) as api, show_progress("rows read") as advance:
        yield from _read_pages(api, advance)


def _read_pages(api: "AdminClient", advance: Any) -> Iterator[list["AuditRow"]]:
    from madang.wire.audit import AuditRow

    after = 0
    for _ in range(_PAGES_MAX):
        rows: list[AuditRow] = api.get("/api/v1/audit", {"after": after, "limit": _PAGE}, kind=list[AuditRow])
        advance(len(rows))
        yield rows
        if len(rows) < _PAGE:
            return
        if rows[-1].seq <= after:
            raise Rejected(f"rows behind {after} were asked for, and came from {rows[-1].seq} on")
        after = rows[-1].seq
    raise Rejected(f"the chain has more than {_PAGES_MAX} pages: it was not read to its end")


def _read_file(path: Path) -> Iterator[list["AuditRow"]]:
    from madang.wire.audit import LINE_BYTES_MAX, decode_line

    try:
        with path.open("rb") as lines, show_progress("rows read") as advance:
            number = 0
            while line := lines.readline(LINE_BYTES_MAX + 1):
                number += 1
                yield [decode_line(line, number)]
                advance(1)
    except OSError as error:
        raise Rejected(f"cannot read {path}: {error.strerror}") from error
