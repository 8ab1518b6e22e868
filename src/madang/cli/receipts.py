"""`madang receipt …`: what proves where a request was served, fetched by a tenant and verified by anybody, offline.

Owns nothing. `show` asks the tenant API with a tenant's key, `keys` the hub, and `verify` nobody when it has the
federation's public keys in a file.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madang.cli.access import Access, command
from madang.cli.terminal import print_json, print_table, say
from madang.core import Rejected, Unavailable

if TYPE_CHECKING:
    from madang.wire.receipts import SiteKeys, Verdict

_TRY_PERIOD_S = 0.5
_ANSWER_TIMEOUT_S = 10.0
_WAITED = ("not_yet", "no_replica")
"""Not there yet, or its site program starts anew."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        no_args_is_help=True, help="Signed statements of where requests were served.", rich_markup_mode=None
    )
    app.add_typer(group, name="receipt")
    command(group, "show")(_show)
    command(group, "verify")(_verify)
    command(group, "keys")(_export_keys)


def _show(
    access: Access,
    receipt_id: Annotated[
        str, typer.Argument(metavar="ID", help="The answer's x-madang-receipt, or its x-request-id for the last try.")
    ],
    key: Annotated[
        str, typer.Option("--key", envvar="MADANG_API_KEY", help="The tenant's API key.", show_default=False)
    ],
    url: Annotated[
        str | None,
        typer.Option("--url", help="A site's tenant API; by default the one that the request entered.", metavar="URL"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write it to this file.", metavar="FILE")] = None,
    wait_s: Annotated[
        float, typer.Option("--wait", min=0, help="Seconds to wait for one that is not there yet.", metavar="SECONDS")
    ] = 10.0,
) -> None:
    """Fetch a receipt, as the document that `verify` takes."""
    import msgspec

    data = _fetch(url or _entry_url(access, receipt_id), receipt_id, key, wait_s)
    text = msgspec.json.format(data, indent=2)
    if out is None:
        print(text.decode())
        return
    _write(out, text + b"\n")
    say(f"receipt {receipt_id} is in {out}; verify it with: madang receipt verify {out}")


def _entry_url(access: Access, receipt_id: str) -> str:
    from madang.core import site_of_request

    entry = site_of_request(receipt_id.partition(".")[0])
    known = access.credentials()
    urls = {site.name: site.url for site in known.sites} | {"national": known.national_url}
    if entry not in urls:
        raise Rejected(f"the URL of site {entry} is not known here", next_step="name it with --url")
    return urls[entry]


def _fetch(url: str, receipt_id: str, key: str, wait_s: float) -> bytes:
    """Return the document; one that is not there yet is asked for again, for a bounded time."""
    import httpx

    from madang.runtime.admin_client import is_loopback
    from madang.runtime.http_trust import trust_for

    until: float | None = None  # counted from the first answer: a slow one does not use the wait up
    try:
        with httpx.Client(
            base_url=url, timeout=_ANSWER_TIMEOUT_S, trust_env=not is_loopback(url), verify=trust_for(url)
        ) as client:
            while True:
                answer = client.get(f"/v1/receipts/{receipt_id}", headers={"authorization": f"Bearer {key}"})
                if answer.is_success:
                    return answer.content
                code, message = _read_error(answer.content)
                until = time.monotonic() + wait_s if until is None else until
                if code not in _WAITED or time.monotonic() >= until:
                    raise Rejected(f"{url}: {message or f'status {answer.status_code}'}")
                time.sleep(_TRY_PERIOD_S)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
        raise Rejected(f"{url} is not a URL: {error}", next_step="write it as http://host:port") from error
    except httpx.TransportError as error:
        raise Unavailable(f"{url} does not answer: {error or type(error).__name__}") from error


def _read_error(content: bytes) -> tuple[str, str]:
    import msgspec

    try:
        found = msgspec.json.decode(content)["error"]
        return str(found["code"]), str(found["message"])
    except (msgspec.MsgspecError, KeyError, TypeError):
        return "", ""


def _verify(
    access: Access,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A receipt, as `show` wrote it.")],
    keys: Annotated[
        Path | None,
        typer.Option("--keys", help="The federation's public keys, from `keys`; without it the hub is asked."),
    ] = None,
) -> None:
    """Verify a receipt: event, proof, signature, and that the key is that of the site which it names."""
    from madang.runtime.signing import is_signed_by
    from madang.wire.receipts import decode_keys, verify_receipt

    data = _read(file)
    known = _ask_keys(access) if keys is None else decode_keys(_read(keys))
    verdict = verify_receipt(data, known.keys, is_signed_by)
    if access.is_json:
        print_json({"is_valid": True, "site": verdict.event.site, "key": verdict.key, "event": verdict.receipt.event})
    else:
        _print_verdict(verdict)


def _print_verdict(verdict: "Verdict") -> None:
    from madang.cli.values import render_instant, render_won

    event, root = verdict.event, verdict.receipt.root
    say(f"valid: signed by site {event.site} (key {root.kid}) at {render_instant(root.signed_at_us / 1e6)}")
    facts = {
        "request": f"{event.request_id}, attempt {event.attempt}: {event.outcome}",
        "tenant": f"{event.tenant_id}, project {event.project_id or '-'}, key {event.key_id}",
        "service": f"{event.service} ({event.model}) at {event.endpoint}",
        "artifact": event.artifact_sha256,
        "served at": f"site {event.site}, chip {event.chip_kind or '-'}",
        "entered at": f"site {event.entry_site}, {event.hops} hop(s)",
        "began": f"{render_instant(event.started_at_us / 1e6)}, {event.duration_us / 1e6:.3f} s",
        "tokens": f"{event.prompt_tokens} in, {event.completion_tokens} out"
        + (" (estimated)" if event.is_estimated else ""),
        "other units": ", ".join(
            f"{value:g} {name}"
            for name, value in (
                ("seconds of sound", event.audio_ms / 1000),
                ("images", event.images),
                ("samples", event.samples),
            )
            if value
        ),
        "charge": f"{render_won(event.charge_micro_won)} won, tariff {event.tariff_id or '-'}",
        "proof": f"leaf {verdict.receipt.proof.leaf_index} of tree {root.tree_id}, which has {root.size}",
    }
    columns = (("", lambda row: row["name"]), ("", lambda row: row["value"]))
    print_table("", columns, [{"name": name, "value": value} for name, value in facts.items()])


def _export_keys(
    access: Access,
    out: Annotated[Path | None, typer.Option("--out", help="Write them to this file.", metavar="FILE")] = None,
) -> None:
    """Export the federation's public keys, those of revoked sites included, to verify receipts without a network."""
    import msgspec

    found = _ask_keys(access)
    if out is None:
        print_json(found)
        return
    _write(out, msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n")
    say(f"{len(found.keys)} public keys are in {out}")


def _ask_keys(access: Access) -> "SiteKeys":
    import msgspec

    from madang.wire.receipts import decode_keys

    with access.hub() as hub:
        found: Any = hub.get("/api/v1/site-keys")
    return decode_keys(msgspec.json.encode(found))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Rejected(f"{path} cannot be read: {error.strerror}") from error


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise Unavailable(f"{path} cannot be written: {error.strerror}") from error
