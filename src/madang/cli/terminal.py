"""What people and programs read: tables, JSON, one-line outcomes on standard output; errors on standard error.

Owns the look. Refuses to know where values come from. Called by every command. Rich is loaded only when something
is printed as a table, so that `madang --help` stays quick.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from madang.core import MadangError

_PLAIN_WIDTH = 240
"""Width of tables that no terminal bounds, such as in a pipe."""
_SHORT_CELLS = 16
"""A column this narrow is kept whole while wider ones can be folded instead."""
_LONG_CELLS_MIN = 20
"""What each wider column must still have for that."""

Row = Mapping[str, Any]
Column = tuple[str, Callable[[Row], object]]
_STATE_COLOURS = {
    "ready": "green",
    "connected": "green",
    "ok": "green",
    "running": "green",
    "stale": "yellow",
    "hole": "yellow",
    "degraded": "yellow",
    "backoff": "yellow",
    "unreachable": "red",
    "disconnected": "red",
    "never_seen": "red",
    "cut": "red",
    "failed": "red",
    "down": "red",
    "revoked": "red",
    # What readings are worth.
    "good": "green",
    "uncertain": "yellow",
    "bad": "red",
    # Priorities and states of alarms.
    "critical": "bold red",
    "high": "red",
    "medium": "yellow",
    "low": "cyan",
    "unacknowledged": "red",
    "acknowledged": "yellow",
    "returned": "yellow",
    "suppressed": "dim",
    "shelved": "dim",
    "out_of_service": "dim",
    # How a box is, what may act on it, and what became of an order.
    "normal": "green",
    "emergency": "bold red",
    "isolated": "bold red",
    "armed": "yellow",
    "observe": "cyan",
    "confirmed": "green",
    "observed": "cyan",
    "awaiting": "yellow",
    "unconfirmed": "red",
    "refused": "red",
    "lapsed": "dim",
}

_KOREAN_HEADS = {
    "CHIP": "칩",
    "SITE": "사이트",
    "NODE": "노드",
    "KIND": "종류",
    "MODEL": "모델",
    "HEALTH": "상태",
    "CORDONED": "차단",
    "HELD BY": "점유",
    "MEMORY": "메모리",
    "FREE": "여유",
    "USE": "사용률",
    "°C": "온도",
    "W": "전력",
    "LIMIT W": "전력 제한",
    "MHz": "클럭",
    "PCI (NUMA)": "위치",
    "CARD": "카드",
    "DRIVER": "드라이버",
    "FIRMWARE": "펌웨어",
    "SIMULATED": "모의",
    "WHY": "사유",
}
"""Second lines of the heads of chips, which are read beside the racks too."""


def field(name: str) -> Callable[[Row], object]:
    """Return a getter of one field; a missing one is empty."""
    return lambda row: row.get(name)


def print_json(value: object) -> None:
    """Print a value as JSON that people can read too."""
    plain = msgspec.to_builtins(value, enc_hook=str)
    print(json.dumps(plain, indent=2, ensure_ascii=False))


def print_table(title: str, columns: Sequence[Column], rows: Iterable[Row]) -> None:
    """Print rows as a table, coloured on a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)
    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    heads = [_head(title, header) for header, _ in columns]
    lines = [[render(value(row)) for _, value in columns] for row in rows]
    whole = _choose_whole(heads, lines, console.width)
    for head, is_whole in zip(heads, whole, strict=True):
        table.add_column(head, overflow="fold", no_wrap=is_whole)
    for cells in lines:
        table.add_row(*(Text(cell, style=_STATE_COLOURS.get(cell, "")) for cell in cells))
    if table.row_count:
        console.print(table)
    else:
        console.print(f"{title or 'result'}: none")


def _head(title: str, header: str) -> str:
    korean = _KOREAN_HEADS.get(header) if title == "chips" else None
    return f"{header}\n{korean}" if korean else header


def _choose_whole(heads: Sequence[str], lines: Sequence[Sequence[str]], width: int) -> list[bool]:
    """Return for each column whether it is never broken: numbers and states are, where texts can give way."""
    from rich.cells import cell_len

    widths = [
        max(cell_len(part) for text in (head, *(line[at] for line in lines)) for part in text.split("\n"))
        for at, head in enumerate(heads)
    ]
    short = [one <= _SHORT_CELLS for one in widths]
    needed = sum(one + 3 if is_short else _LONG_CELLS_MIN + 3 for one, is_short in zip(widths, short, strict=True))
    return short if needed <= width else [False] * len(heads)


def render(value: object) -> str:
    """Return a cell's text: nothing is a dash, truth is yes or no, lists are joined."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.1f}"
    if isinstance(value, list | tuple):
        return ", ".join(render(item) for item in value) or "-"
    return str(value)


def render_bytes(value: object) -> str:
    """Return a size with a unit that fits it."""
    if not isinstance(value, int | float):
        return "-"
    size = float(value)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"


def render_duration(value: object) -> str:
    """Return seconds as the two largest units that matter."""
    if not isinstance(value, int | float) or value < 0:
        return "-"
    seconds = round(value)
    for size, unit, smaller_size, smaller_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if seconds >= size:
            return f"{seconds // size}{unit}{seconds % size // smaller_size}{smaller_unit}"
    return f"{value:.1f}s" if value < 10 else f"{seconds}s"


def render_residency(value: object) -> str:
    """Return `site:daegu`, as `--residency` takes it."""
    if not isinstance(value, Mapping):
        return "-"
    text = ":".join(filter(None, (str(value.get("scope", "?")), ",".join(value.get("places") or ()))))
    return f"{text} (transit granted)" if value.get("is_transit_granted") else text


def say(text: str) -> None:
    """Print one line of outcome."""
    print(text)


@contextlib.contextmanager
def show_progress(what: str) -> Iterator[Callable[[int], None]]:
    """Count up `what` on a terminal's standard error while a block runs; calls nobody sees elsewhere.

    Yields:
        Says that so many more are done.
    """
    if not sys.stderr.isatty():
        yield lambda _count: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} " + what), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda count: progress.advance(task, count)


def print_error(error: MadangError) -> None:
    """Print what failed, where and what was expected, and the next step, on standard error."""
    is_coloured = sys.stderr.isatty()
    head = "\x1b[1;31merror:\x1b[0m" if is_coloured else "error:"
    print(f"{head} {error.message}", file=sys.stderr)
    if error.next_step:
        print(f"  try: {error.next_step}", file=sys.stderr)
