"""`madang price …`: the dated price book. Owns nothing; calls the hub's API. Prices are won, net of VAT."""

from typing import Annotated, Any

import typer

from madang.cli.access import Access, command, rows_of
from madang.cli.budgets import won
from madang.cli.terminal import Row, field, print_json, print_table, say

CLASSES = ("clinical", "interactive", "batch")
PRICE_FIELDS = (
    "prompt_micro_won_per_million",
    "completion_micro_won_per_million",
    "request_micro_won",
    "audio_second_micro_won",
    "image_micro_won",
    "sample_micro_won",
)
Service = Annotated[str, typer.Argument(metavar="SERVICE", help="The service's name.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True, help="The price book: what services cost from which day on.", rich_markup_mode=None
    )
    app.add_typer(group, name="price")
    command(group, "list")(_list_prices)
    command(group, "set")(_set_price)
    command(group, "delete")(_delete_price)


def _list_prices(
    access: Access,
    service: Annotated[str | None, typer.Option("--service", help="Only this service's.")] = None,
    is_all: Annotated[bool, typer.Option("--all", help="Those that were replaced too.")] = False,
) -> None:
    """List prices in force and to come."""
    with access.hub() as hub:
        rows = rows_of(hub.get("/api/v1/tariffs", {"service": service}), "tariffs")
    if access.is_json:
        print_json({"tariffs": rows})
        return
    marked = [{**row, "state": _state_of(row, rows, _today())} for row in rows]
    print_table(
        "prices / 요금표 (won without VAT, 부가가치세 별도 원)",
        (
            ("SERVICE 서비스", field("service")),
            ("CLASS 등급", field("priority")),
            ("FROM 시작일", field("valid_from")),
            ("MILLION TOKENS READ 입력 백만 토큰", won(PRICE_FIELDS[0])),
            ("WRITTEN 출력 백만 토큰", won(PRICE_FIELDS[1])),
            ("REQUEST 요청", won(PRICE_FIELDS[2])),
            ("SECOND OF SOUND 음성 초", won(PRICE_FIELDS[3])),
            ("IMAGE 영상", won(PRICE_FIELDS[4])),
            ("SAMPLE 표본", won(PRICE_FIELDS[5])),
            ("STATE 상태", field("state")),
        ),
        [row for row in marked if is_all or row["state"] != _PAST],
    )


_PAST, _NOW, _COMING = "past 종료", "in force 적용 중", "to come 예정"


def _state_of(row: Row, rows: list[Any], today: str) -> str:
    if row["valid_from"] > today:
        return _COMING
    later = (
        other
        for other in rows
        if (other["service"], other["priority"]) == (row["service"], row["priority"])
        and row["valid_from"] < other["valid_from"] <= today
    )
    return _PAST if any(later) else _NOW


def _set_price(
    access: Access,
    service: Service,
    read: Annotated[
        str | None, typer.Option("--tokens-read", metavar="WON", help="For a million tokens read; 0 when absent.")
    ] = None,
    written: Annotated[
        str | None, typer.Option("--tokens-written", metavar="WON", help="For a million tokens written; 0 when absent.")
    ] = None,
    request: Annotated[
        str | None, typer.Option("--request", metavar="WON", help="For each completed request; 0 when absent.")
    ] = None,
    second: Annotated[
        str | None, typer.Option("--audio-second", metavar="WON", help="For each begun second of sound; 0 when absent.")
    ] = None,
    image: Annotated[
        str | None, typer.Option("--image", metavar="WON", help="For each image of a batch; 0 when absent.")
    ] = None,
    sample: Annotated[
        str | None, typer.Option("--sample", metavar="WON", help="For each sample of a batch; 0 when absent.")
    ] = None,
    priority: Annotated[
        str | None, typer.Option("--priority", help=f"Only for one class of {', '.join(CLASSES)}; all by default.")
    ] = None,
    day: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="YYYY-MM-DD",
            help="First day, Korean time. Tomorrow by default, today where there is no price yet.",
        ),
    ] = None,
) -> None:
    """Enter a price; one that has begun never changes, a later one replaces it."""
    from madang.cli.values import parse_won

    amounts = (read, written, request, second, image, sample)
    if all(amount is None for amount in amounts):
        raise typer.BadParameter(
            "name at least one of --tokens-read, --tokens-written, --request, --audio-second, --image, --sample"
        )
    if priority is not None and priority not in CLASSES:
        raise typer.BadParameter(f"{priority!r} is unknown: expected {', '.join(CLASSES)}", param_hint="--priority")
    named = zip(PRICE_FIELDS, amounts, strict=True)
    prices = {name: parse_won(amount) for name, amount in named if amount is not None}
    classes = CLASSES if priority is None else (priority,)
    made = []
    with access.hub() as hub:
        known = [] if day is not None else rows_of(hub.get("/api/v1/tariffs", {"service": service}), "tariffs")
        for one in classes:
            valid_from = day if day is not None else _first_day(known, one)
            body = {"service": service, "priority": one, "valid_from": valid_from, **prices}
            made.append(hub.call("POST", "/api/v1/tariffs", body))
    if access.is_json:
        print_json({"tariffs": made})
        return
    for tariff in made:
        say(f"price {tariff['tariff_id']} entered: holds from {tariff['valid_from']}, Korean time")


def _first_day(known: list[Any], priority: str) -> str:
    """Return today where a class of a service has no price in force, else tomorrow."""
    from madang.machine.lease_periods import DAY_S
    from madang.policy.pricing import kst_day
    from madang.runtime.clock import SystemClock

    now_s = SystemClock().wall_s()
    today = kst_day(now_s)
    has_price = any(row["priority"] == priority and row["valid_from"] <= today for row in known)
    return kst_day(now_s + DAY_S) if has_price else today


def _today() -> str:
    from madang.policy.pricing import kst_day
    from madang.runtime.clock import SystemClock

    return kst_day(SystemClock().wall_s())


def _delete_price(
    access: Access,
    tariff: Annotated[
        str, typer.Argument(metavar="TARIFF", help="SERVICE.CLASS.YYYY-MM-DD, as madang price list --json names it.")
    ],
) -> None:
    """Take back a price that has not begun."""
    with access.hub() as hub:
        hub.call("DELETE", f"/api/v1/tariffs/{tariff}")
    say(f"price {tariff} deleted")
