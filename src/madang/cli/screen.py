"""How `madang up` shows its progress: a live table on a terminal, plain lines otherwise; and its closing words.

Owns the look, in Korean and English, since tenants and operators read it first. Refuses to know what is done.
Progress goes to standard error, the summary to standard output.
"""

import contextlib
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from madang.cli.facility_views import alarms_of, text_of
from madang.federation.demo import GUIDE_TENANT
from madang.federation.up import UpReport
from madang.federation.waiting import PartView
from madang.node.artifacts import FetchProgress

_PERCENT_STEP = 10


class PlainScreen:
    """Prints a line whenever a part comes to a new point."""

    def __init__(self) -> None:
        self._started_ns = time.monotonic_ns()
        self._last: dict[str, str] = {}
        self._percent: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def say(self, part: str, text: str) -> None:
        """Print what a part came to, once."""
        if self._last.get(part) != text:
            self._last[part] = text
            elapsed_s = (time.monotonic_ns() - self._started_ns) / 1e9
            print(f"[{elapsed_s:6.1f} s] {part}: {text}", file=sys.stderr, flush=True)

    def show(self, views: list[PartView]) -> None:
        """Print what changed."""
        for view in views:
            self.say(view.name, view.text)

    def fetched(self, progress: FetchProgress) -> None:
        """Print every tenth of a file."""
        percent = 100 * progress.bytes_done // max(progress.bytes_total, 1)
        if percent >= self._percent.get(progress.name, 0) + _PERCENT_STEP:
            self._percent[progress.name] = percent - percent % _PERCENT_STEP
            self.say("models", f"{progress.name}: {percent} % ({progress.what})")


class LiveScreen:
    """Redraws a small table; lines that stay are printed above it."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._started_ns = time.monotonic_ns()
        self._views: list[PartView] = []
        self._files: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            console=self._console,
        )
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=8, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, part: str, text: str) -> None:
        """Print a line that stays."""
        self._console.print(Text.assemble(("  • ", "cyan"), (f"{part:<12}", "bold"), text))

    def show(self, views: list[PartView]) -> None:
        """Take the newest views for the table."""
        self._files.clear()
        self._views = views

    def fetched(self, progress: FetchProgress) -> None:
        """Move a file's bar."""
        if progress.name not in self._files:
            self._files[progress.name] = self._progress.add_task(progress.name, total=progress.bytes_total)
        self._progress.update(
            self._files[progress.name], completed=progress.bytes_done, description=f"{progress.name} ({progress.what})"
        )

    def _render(self) -> Group:
        elapsed_s = (time.monotonic_ns() - self._started_ns) / 1e9
        if self._files:
            return Group(self._progress)
        table = Table.grid(padding=(0, 2))
        for view in self._views:
            mark = ("✓", "green") if view.is_ready else ("…", "yellow")
            table.add_row("", Text(*mark), Text(view.name, style="bold"), Text(view.url, style="dim"), view.text)
        return Group(table, Text(f"  {elapsed_s:.0f} s", style="dim"))


def choose_screen() -> PlainScreen | LiveScreen:
    """Return the screen that fits standard error."""
    return LiveScreen() if sys.stderr.isatty() else PlainScreen()


def print_summary(report: UpReport, facility: Mapping[str, Mapping[str, Any] | None], state_option: str) -> None:
    """Print URLs, keys, power and cooling, the first answer and what to try next.

    Args:
        report: what stands.
        facility: power and cooling by site, None where a site has none.
        state_option: ` --state DIR` where the commands need it, with a leading space, else empty.
    """
    # Keys and commands are copied from here: they are never wrapped or cut.
    console = Console(highlight=False, soft_wrap=True)
    known = report.credentials
    happened = "is running already / 이미 실행 중입니다" if report.was_running else "is up / 시작되었습니다"
    console.print(f"\n[bold green]Madang {happened}[/] ({report.duration_s:.1f} s)\n")
    rows = [("national entry / 전국 진입점", known.national_url)]
    for place, site in zip(report.layout.sites[1:], known.sites, strict=True):
        rows.append((f"site {site.name} / 사이트 ({place.region})", site.url))
    rows.append(("hub admin API / 허브 관리 API", f"{known.hub_url}  (OpenAPI: {known.hub_url}/openapi.json)"))
    rows.append(("tokens and keys / 토큰과 키", str(report.layout.credentials_path)))
    _print_rows(console, rows, indent=2)
    if known.tenants:
        console.print("\n  [bold]tenants and their keys / 테넌트와 키[/]")
        tenants = [
            (tenant.name, f"{tenant.residency.scope}:{','.join(tenant.residency.places)}", tenant.api_key)
            for tenant in known.tenants
        ]
        _print_rows(console, tenants, indent=4)
    _print_facility(console, facility)
    _print_answer(console, report)
    _print_next_steps(console, report, state_option)


def _print_rows(console: Console, rows: Sequence[tuple[str, ...]], indent: int) -> None:
    """Print columns side by side; Korean letters take two cells."""
    widths = [max(cell_len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (set_cell_size(cell, width) for cell, width in zip(row, widths, strict=True))
        console.print(" " * indent + "   ".join(cells).rstrip(), markup=False)


def _print_facility(console: Console, facility: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Print a line for each site that has power and cooling."""
    rows = [
        (
            site,
            f"PUE {text_of('pue', found['pue'])}",
            f"{text_of('headroom_w', found['headroom_w'])} free",
            f"battery {text_of('runtime_s', found['runtime_s'])}",
            f"{text_of('thermal_margin_k', found['thermal_margin_k'])} to the limit",
            f"alarms {alarms_of(found)}",
        )
        for site, found in facility.items()
        if found is not None
    ]
    if rows:
        is_simulated = any(found["is_simulated"] for found in facility.values() if found is not None)
        console.print(f"\n  [bold]power and cooling / 전력·냉각[/]{' (simulated / 모의)' if is_simulated else ''}")
        _print_rows(console, rows, indent=4)


def _print_answer(console: Console, report: UpReport) -> None:
    answer = report.answer
    if answer is None:
        return
    console.print("\n  [bold]first question / 첫 질문[/]")
    console.print(f"    Q  {answer.question}", markup=False)
    console.print(f"    A  {answer.text}", markup=False)
    console.print(
        f"       [dim]x-madang-site: {answer.site}  x-madang-chip: {answer.chip}  "
        f"x-request-id: {answer.request_id}  {answer.duration_s:.2f} s[/]"
    )


def _print_next_steps(console: Console, report: UpReport, state_option: str) -> None:
    known = report.credentials
    console.print("\n  [bold]try next / 다음으로 해 볼 것[/]")
    if known.tenants and report.answer is not None:
        key = next(tenant.api_key for tenant in known.tenants if tenant.name == GUIDE_TENANT)
        body = '{"model": "madang-chat", "messages": [{"role": "user", "content": "안녕하세요?"}]}'
        lines = [
            f"curl -s {known.national_url}/v1/chat/completions \\",
            f"  -H 'Authorization: Bearer {key}' \\",
            f"  -H 'Content-Type: application/json' -d '{body}'",
            "",
            "from openai import OpenAI    # pip install openai",
            f'client = OpenAI(base_url="{known.national_url}/v1", api_key="{key}")',
            'print(client.chat.completions.create(model="madang-chat", messages=[',
            '    {"role": "user", "content": "대구는 어떤 도시인가요?"}]).choices[0].message.content)',
            "",
        ]
        for line in lines:
            console.print(f"    {line}".rstrip(), markup=False)
    _print_rows(
        console,
        [
            (f"{_program()} {verb}{state_option}", f"# {meaning}")
            for verb, meaning in (
                ("status", "what runs / 상태"),
                ("wan cut daegu", "cut a site off / 사이트의 망을 끊기"),
                ("wan heal daegu", "and heal it / 다시 잇기"),
                ("sim fault daegu cooling_lost cooling_1", "a cooling unit stands still / 냉각기 고장"),
                ("facility show --site daegu", "power and cooling / 전력·냉각"),
                ("alarm list --site daegu", "what is wrong / 경보"),
                ("sim fault daegu cooling_lost cooling_1 --over", "mend it / 고장 해소"),
                ("usage", "the ledger / 사용량"),
                ("model list", "speech, print, pictures and more: examples/README.md / 다른 모델"),
                ("down", "end it all / 모두 멈추기"),
            )
        ],
        indent=4,
    )
    console.print()


def _program() -> str:
    """Return the command as the reader can type it: its path, unless the shell finds this very one by name."""
    here = Path(sys.argv[0]).absolute()
    if here.name != "madang" or shutil.which("madang") == str(here):
        return "madang"
    with contextlib.suppress(ValueError):
        return str(here.relative_to(Path.cwd()))
    return str(here)
