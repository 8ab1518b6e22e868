"""`madang model build`, `builds`, `work`, `keys`, `cache`, `inspect`, `transfers`, `compare`: artifacts, stand-ins.

Owns nothing; calls the hub's API, and for a comparison the tenants' API of a site.
"""

from pathlib import Path
from typing import Annotated

import typer

from madang.cli.access import Access, SiteOption, command, rows_of
from madang.cli.terminal import field, print_json, print_table, render_bytes, say

_WORK_PERIOD_S = 10.0


def add_commands(models: typer.Typer) -> None:
    """Add the commands to the group `model`."""
    command(models, "build")(_build)
    command(models, "builds")(_builds)
    command(models, "worker")(_worker)
    command(models, "workers")(_workers)
    command(models, "work")(_work)
    command(models, "keys")(_keys)
    command(models, "cache")(_cache)
    command(models, "inspect")(_inspect)
    command(models, "transfers")(_transfers)
    command(models, "compare")(_compare)


def _transfers(
    access: Access,
    site: SiteOption = None,
    model: Annotated[str | None, typer.Option("--model", help="Only files of this model.")] = None,
) -> None:
    """Show which files are on their way into which cache, how far they are, and what went wrong."""
    from madang.cli.coverage import list_transfers

    list_transfers(access, site, model)


def _build(
    access: Access,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The catalog entry's name.")],
    chip_kind: Annotated[str, typer.Option("--chip", help="Chip driver to compile for, such as furiosa.")],
    sdk: Annotated[str, typer.Option("--sdk", help="Vendor stack and version, such as furiosa-2026.3.")],
    engine: Annotated[str, typer.Option("--engine", help="The engine that loads what comes out.")],
    memory_bytes: Annotated[int, typer.Option("--memory-bytes", min=1, help="What one engine will need of a chip.")],
    artifact_id: Annotated[str | None, typer.Option("--artifact", help="Its id; made of chip, SDK and split.")] = None,
    parallelism: Annotated[str, typer.Option("--parallelism", help="How it is split, such as tp4.")] = "",
    context_tokens: Annotated[int, typer.Option("--context-tokens", min=0, help="Longest context.")] = 0,
    inputs: Annotated[list[str] | None, typer.Option("--input", help="NAME=VALUE for the worker; repeatable.")] = None,
    attempts: Annotated[int, typer.Option("--attempts", min=1, help="How often it is tried.")] = 3,
) -> None:
    """Ask for an artifact to be compiled."""
    from madang.core import Rejected

    given = dict(text.partition("=")[::2] for text in inputs or [])
    if not all("=" in text for text in inputs or []):
        raise Rejected("an --input is not NAME=VALUE", next_step="for example: --input weights=SHA256")
    with access.hub() as hub:
        revision = hub.get(f"/api/v1/models/{model}").get("revision", "")
        body = {
            "key": {
                "model": model,
                "revision": revision,
                "chip_kind": chip_kind,
                "sdk": sdk,
                "parallelism": parallelism,
                "context_tokens_max": context_tokens,
            },
            "inputs": given,
            "artifact_id": artifact_id or "-".join(part for part in (sdk, parallelism) if part),
            "engine": engine,
            "memory_bytes": memory_bytes,
            "attempts_max": attempts,
        }
        build = hub.call("POST", "/api/v1/builds", body)
    if access.is_json:
        print_json(build)
    else:
        say(f"build {build['build_id']} is {build['state']}; follow it with: madang model builds {build['build_id']}")


def _builds(
    access: Access,
    build_id: Annotated[str | None, typer.Argument(metavar="[BUILD]", help="One build, with its log.")] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Cancel that build.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try that build once more.")] = False,
    model: Annotated[str | None, typer.Option("--model", help="Only builds of this model.")] = None,
) -> None:
    """List builds, or show, cancel or retry one."""
    from madang.core import Rejected

    if (cancel or retry) and (build_id is None or (cancel and retry)):
        raise Rejected("--cancel and --retry need one BUILD, and exclude each other")
    with access.hub() as hub:
        if build_id is not None:
            action = "cancel" if cancel else "retry"
            path = f"/api/v1/builds/{build_id}"
            print_json(hub.call("POST", f"{path}/{action}") if cancel or retry else hub.get(path))
            return
        rows = rows_of(hub.get("/api/v1/builds", {"model": model}), "builds")
    if access.is_json:
        print_json({"builds": rows})
        return
    print_table(
        "builds",
        (
            ("BUILD", field("build_id")),
            ("MODEL", lambda row: row["request"]["key"]["model"]),
            ("CHIP", lambda row: row["request"]["key"]["chip_kind"]),
            ("SDK", lambda row: row["request"]["key"]["sdk"]),
            ("STATE", field("state")),
            ("ATTEMPT", field("attempt")),
            ("WORKER", lambda row: row["worker"] or "-"),
            ("LOG", lambda row: (row["log"].strip().splitlines() or ["-"])[-1]),
        ),
        rows,
    )


def _worker(
    access: Access,
    name: Annotated[str, typer.Argument(metavar="WORKER", help="Its name.")],
    offers: Annotated[
        list[str] | None, typer.Option("--offer", help="CHIP:SDK that it compiles for; repeatable.")
    ] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Remove it instead.")] = False,
) -> None:
    """Register a worker that compiles artifacts, and print its token; it is not shown again."""
    from madang.core import Rejected

    with access.hub() as hub:
        if remove:
            hub.call("DELETE", f"/api/v1/build-workers/{name}")
            say(f"worker {name} removed")
            return
        pairs = [text.partition(":") for text in offers or []]
        if not pairs or not all(kind and sdk for kind, _, sdk in pairs):
            raise Rejected("a worker needs --offer CHIP:SDK", next_step="for example: --offer furiosa:furiosa-2026.3")
        body = {"name": name, "offers": [{"chip_kind": kind, "sdk": sdk} for kind, _, sdk in pairs]}
        made = hub.call("POST", "/api/v1/build-workers", body)
    if access.is_json:
        print_json(made)
    else:
        say(made["token"])


def _workers(access: Access) -> None:
    """List workers."""
    with access.hub() as hub:
        rows = rows_of(hub.get("/api/v1/build-workers"), "workers")
    if access.is_json:
        print_json({"workers": rows})
        return
    print_table(
        "workers",
        (
            ("WORKER", lambda row: row["worker"]["name"]),
            ("OFFERS", lambda row: [f"{one['chip_kind']}:{one['sdk']}" for one in row["worker"]["offers"]]),
            ("HEARD", lambda row: "yes" if row["heard_at_s"] else "never"),
        ),
        rows,
    )


def _work(
    access: Access,
    run: Annotated[str, typer.Option("--run", help="The command that compiles: a program and its arguments.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where builds get their folders; needs room.")],
    is_once: Annotated[bool, typer.Option("--once", help="Do one build, or none, and end.")] = False,
) -> None:
    """Compile what is asked for, one build after the other; --token is the worker's own."""
    import shlex
    import threading

    from madang.cli.build_work import WorkApi, work_once
    from madang.core import Unavailable

    wait = threading.Event().wait
    api = WorkApi(*access.hub_as_worker())
    try:
        while True:
            try:
                ended = work_once(api, shlex.split(run), folder, wait)
            except Unavailable as error:
                if is_once:
                    raise
                ended = error.message
            if ended or is_once:
                say(ended or "nothing to do")
            if is_once:
                return
            wait(_WORK_PERIOD_S)
    finally:
        api.close()


def _keys(access: Access) -> None:
    """List the hub's public keys that sign manifests: for `artifact_keys` of sites and nodes."""
    with access.hub() as hub:
        rows = rows_of(hub.get("/api/v1/artifact-keys"), "keys")
    if access.is_json:
        print_json({"keys": rows})
    else:
        print_table("keys", (("KID", field("kid")), ("ALG", field("alg")), ("PUBLIC KEY", field("public_key"))), rows)


def _cache(
    access: Access,
    folder: Annotated[Path | None, typer.Option("--folder", help="The cache.", show_default="this machine's")] = None,
    unpin: Annotated[str | None, typer.Option("--unpin", help="Forget what this owner needs; it must be gone.")] = None,
) -> None:
    """Show what the artifact cache of this machine holds, least recently used first, and who needs it."""
    from madang.core import Rejected
    from madang.federation.state import choose_cache_dir
    from madang.runtime.artifacts.cache import ArtifactCache
    from madang.runtime.artifacts.room import ArtifactRoom

    room = ArtifactRoom(ArtifactCache(folder or choose_cache_dir()))
    if unpin is not None:
        if not room.unpin(unpin):
            raise Rejected(f"nobody called {unpin!r} has pins here", next_step="see: madang model cache")
        say(f"{unpin} needs nothing here any more")
        return
    owners = room.read_pins()
    rows = [
        {
            "sha256": held.sha256,
            "size_bytes": held.size_bytes,
            "used_at_s": held.used_at_s,
            "owners": sorted(owner for owner, pins in owners.items() if held.sha256 in pins.sha256s),
        }
        for held in room.list_held()
    ]
    if access.is_json:
        print_json({"files": rows})
        return
    columns = (
        ("SHA256", lambda row: row["sha256"][:16]),
        ("SIZE", lambda row: render_bytes(row["size_bytes"])),
        ("NEEDED BY", lambda row: row["owners"] or "-"),
    )
    print_table("files", columns, rows)


def _inspect(
    access: Access,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="The files of one artifact, on this machine.")],
) -> None:
    """Show what a catalog entry must say of files: sizes, hashes, and the hashes of tokenizer and chat template."""
    from madang.core import Rejected
    from madang.runtime.artifacts.cache import hash_file
    from madang.runtime.artifacts.text_files import read_text_files

    try:
        rows = [{"name": path.name, "size_bytes": path.stat().st_size, "sha256": hash_file(path)} for path in files]
    except OSError as error:
        raise Rejected(f"cannot read {error.filename}: {error.strerror}") from error
    found = read_text_files({path.name: path for path in files})
    if access.is_json:
        print_json({"files": rows, **found._asdict()})
        return
    columns = (("FILE", field("name")), ("BYTES", field("size_bytes")), ("SHA-256", field("sha256")))
    print_table("files", columns, rows)
    for name, value in found._asdict().items():
        say(f"{name}  {value or '-'}")


def _compare(
    access: Access,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The catalog entry's name.")],
    reference: Annotated[str, typer.Option("--reference", help="A service that runs the artifact to agree with.")],
    candidate: Annotated[str, typer.Option("--candidate", help="A service that runs the other one.")],
    url: Annotated[str, typer.Option("--url", help="Tenants' API of a site, such as http://127.0.0.1:7710.")],
    key: Annotated[str, typer.Option("--key", envvar="MADANG_API_KEY", help="A key that may use both services.")],
) -> None:
    """Ask two running artifacts of a model the same prompts, and let the hub judge whether they may stand in."""
    from madang.cli.comparison import compare_services
    from madang.model import Task

    with access.hub() as hub:
        task = Task(hub.get(f"/api/v1/models/{model}")["task"])
        measured = compare_services(task, reference, candidate, url, key)
        body = {"reference_service": reference, "candidate_service": candidate, "measured": measured}
        verdict = hub.call("POST", f"/api/v1/models/{model}/equivalences", body)
    if access.is_json:
        print_json(verdict)
    else:
        pair = f"{verdict['candidate']} for {verdict['reference']}"
        agreement = f"agreement {verdict['mean']:.4f} on average, {verdict['least']:.4f} at least"
        say(f"{agreement}, on {verdict['prompts']} prompts")
        say("\n".join([f"{pair}: no", *verdict["reasons"]]) if verdict["reasons"] else f"{pair}: may stand in")
    if verdict["reasons"]:
        raise typer.Exit(1)
