"""`madang facility …`: what stands in a box beside the chips. Owns nothing; reads site files and calls sites' APIs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madang.cli import facility_energy, facility_views, facility_words
from madang.cli.access import Access, command
from madang.cli.terminal import field, print_json, print_table, say

if TYPE_CHECKING:
    from madang.policy.facility.finding import Finding

File = Annotated[Path, typer.Argument(metavar="FILE", help="A site file, such as examples/site-container.toml.")]
_SEVERITIES = {"error": "error 오류", "warning": "warning 경고", "note": "note 참고"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Power, cooling and security of a site.", rich_markup_mode=None)
    app.add_typer(group, name="facility")
    facility_views.register(group)
    facility_words.register(group)
    command(group, "check")(_check)
    facility_energy.register(group)


def _check(access: Access, file: File) -> None:
    """Find what is wrong in a site file: phases, feeds counted twice, missing spares, overload, and the like.

    Ends with 1 when there are errors; warnings and notes let it pass.
    """
    from madang.facility.site_file import load_site_file
    from madang.policy.facility.check import check_site

    site = load_site_file(file)
    rows = [_row(one) for one in check_site(site.model, site.plan)]
    errors = sum(row["severity"] == "error" for row in rows)
    counts = {
        "equipment": len(site.model.equipment),
        "devices": len(site.devices),
        "points": len(site.model.points),
    }
    if access.is_json:
        print_json({"site": site.model.site, **counts, "errors": errors, "findings": rows})
    else:
        _print(rows)
        say(
            f"{file}: {site.model.site}: {counts['equipment']} pieces of equipment, {counts['devices']} devices, "
            f"{counts['points']} points, {errors} errors / 장비 {counts['equipment']}, 장치 {counts['devices']}, "
            f"점 {counts['points']}, 오류 {errors}"
        )
    if errors:
        raise typer.Exit(1)


def _row(one: "Finding") -> dict[str, Any]:
    return {
        "severity": one.severity.value,
        "rule": one.rule,
        "place": one.place,
        "why": one.why(),
        "why_ko": one.why("ko"),
        "next_step": one.next_step(),
        "next_step_ko": one.next_step("ko"),
    }


def _print(rows: list[dict[str, Any]]) -> None:
    print_table(
        "findings / 점검 결과",
        (
            ("SEVERITY\n정도", lambda row: _SEVERITIES[row["severity"]]),
            ("PLACE\n위치", field("place")),
            ("WHY\n사유", lambda row: f"{row['why']}\n{row['why_ko']}"),
            ("NEXT STEP\n조치", lambda row: f"{row['next_step']}\n{row['next_step_ko']}"),
        ),
        rows,
    )
