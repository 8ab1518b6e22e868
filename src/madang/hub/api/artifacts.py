"""Routes of the artifact store, and what of which model is where."""

import asyncio
import re
from collections import Counter
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from fastapi import APIRouter, Request, Response
from starlette.responses import FileResponse
from starlette.types import Message, Receive, Scope, Send

from madang.core import Rejected
from madang.hub.builds import list_builds
from madang.hub.change import Change
from madang.hub.desired_store import read_sites
from madang.hub.equivalences import Comparison, Equivalence, Running, judge, list_verdicts
from madang.hub.facts_admin import put_model, read_model, read_service
from madang.hub.parts import HubParts
from madang.hub.text_facts import enter_texts, read_texts
from madang.model import CatalogEntry, Service
from madang.model.build import Build
from madang.policy.coverage import ChipGroup, CoverageRow, cover
from madang.policy.equivalence import keep_standing
from madang.runtime.admin_http import NotFound, json_response, read_body, takes
from madang.runtime.artifacts.serving import ANYBODY, ServedCounts
from madang.wire.artifacts import ALG
from madang.wire.receipts import make_kid

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_FOR_EVER = {"cache-control": "public, max-age=31536000, immutable"}


def make_router(parts: HubParts) -> APIRouter:
    """Return the routes behind the token."""
    router = APIRouter(prefix="/api/v1", tags=["artifacts"])

    @router.get("/artifact-keys")
    async def list_keys() -> Response:
        """The public keys that sign manifests here: what nodes and sites put into `artifact_keys`."""
        signer = parts.artifacts.signer
        return json_response([{"alg": ALG, "kid": make_kid(signer.public_key), "public_key": signer.public_hex}])

    @router.get("/transfers")
    async def list_transfers(model: str = "") -> Response:
        """Files on their way into caches, as sites said last."""
        rows = parts.observed.list_rows("transfers")
        return json_response([row for row in rows if not model or row.get("model") == model])

    @router.get("/unplaced")
    async def list_unplaced(service: str = "") -> Response:
        """Replicas that are wanted and have no place, with the reason, as sites said last."""
        rows = parts.observed.list_rows("unplaced")
        return json_response([row for row in rows if not service or row.get("service") == service])

    @router.get("/models/{name}/coverage")
    async def cover_model(name: str) -> Response:
        """Which chips have an artifact of the model, and what is missing where."""
        now_s = parts.clock.wall_s()
        entry, builds = await parts.store.read(lambda c: (read_model(c, name), list_builds(c, now_s, name)))
        return json_response(_cover(parts, entry, entry, builds, None))

    @router.get("/services/{name}/coverage")
    async def cover_service(name: str) -> Response:
        """The same for the sites of one service and the artifacts that may run for it."""
        now_s = parts.clock.wall_s()
        service, sites, entry, builds = await parts.store.read(lambda c: _read_wanted(c, name, now_s))
        return json_response(_cover(parts, entry, keep_standing(entry, service), builds, sites))

    @router.get("/models/{name}/equivalences")
    async def list_equivalences(name: str) -> Response:
        return json_response(await parts.store.read(lambda c: list_verdicts(c, name)))

    @router.post("/models/{name}/equivalences", openapi_extra=takes(Comparison))
    async def compare(name: str, request: Request) -> Response:
        body = await read_body(request, Comparison)
        running = [
            Running(service=str(row.get("service")), artifact_sha256=str(row.get("artifact_sha256")))
            for row in parts.observed.list_rows("replicas")
            if row.get("phase") == "ready"
        ]
        entry = await parts.store.read(lambda c: read_model(c, name))
        texts = await asyncio.to_thread(read_texts, entry, parts.artifacts.find)

        def act(change: Change) -> Equivalence:
            put_model(change, enter_texts(read_model(change.connection, name), texts))
            verdict = judge(change, name, body, running)
            # Writes the pairs that hold into the catalog entry, and with it to every site.
            put_model(change, read_model(change.connection, name))
            return verdict

        return json_response(await parts.changer.run(act), 201)

    return router


def _read_wanted(
    connection: sa.Connection, name: str, now_s: float
) -> tuple[Service, set[str], CatalogEntry, list[Build]]:
    service = read_service(connection, name)
    every = {site.name for site in read_sites(connection) if not site.is_entry_only}
    sites = {str(site) for site in service.sites or every}
    return service, sites, read_model(connection, service.model), list_builds(connection, now_s, service.model)


def _cover(
    parts: HubParts, entry: CatalogEntry, standing: CatalogEntry, builds: list[Build], sites: set[str] | None
) -> tuple[CoverageRow, ...]:
    held = parts.artifacts.list_held(file for artifact in entry.artifacts for file in artifact.files)
    groups = _group_chips(parts.observed.list_rows("chips"), sites)
    return cover(entry, {one.artifact_id for one in standing.artifacts}, groups, held, builds)


def _group_chips(rows: list[dict[str, Any]], sites: set[str] | None) -> list[ChipGroup]:
    counts = Counter(
        (str(row["site"]), str(row.get("kind", "")), str(row.get("sdk_version") or ""))
        for row in rows
        if sites is None or row["site"] in sites
    )
    groups = [
        ChipGroup(site=site, chip_kind=kind, sdk_version=sdk, chips=count)
        for (site, kind, sdk), count in counts.items()
    ]
    # A site that is wanted and has no chips at all would otherwise be missing without a word.
    bare = sorted((sites or set()) - {group.site for group in groups})
    return groups + [ChipGroup(site=site, chip_kind="", chips=0) for site in bare]


def make_store_router(parts: HubParts) -> APIRouter:
    """Return the artifact store's routes: open, since what is named by its hash needs no secret to be safe."""
    router = APIRouter(tags=["artifacts"])
    artifacts = parts.artifacts

    @router.head("/artifacts/{sha256}", include_in_schema=False)
    @router.get("/artifacts/{sha256}")
    async def get_artifact(sha256: str) -> Response:
        path = artifacts.find(_check(sha256))
        if path is None:
            artifacts.served.answered(ANYBODY, "not_found")
            raise NotFound(f"artifact {sha256} is not in this store")
        headers = {"etag": f'"{sha256}"', **_FOR_EVER}
        return _StoreFile(path, artifacts.served, headers)

    @router.get("/artifacts/{sha256}/manifest")
    async def get_manifest(sha256: str) -> Response:
        document = await artifacts.find_manifest(_check(sha256))
        artifacts.served.answered(ANYBODY, "not_found" if document is None else "manifest")
        if document is None:
            raise NotFound(f"artifact {sha256} is not in this store")
        return Response(document, media_type="application/json", headers=_FOR_EVER)

    return router


class _StoreFile(FileResponse):
    """A file of the store, or a range of it, that is counted as it goes out."""

    def __init__(self, path: Path, served: ServedCounts, headers: dict[str, str]) -> None:
        super().__init__(path, media_type="application/octet-stream", headers=headers)
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_file = False

        async def count(message: Message) -> None:
            nonlocal is_file
            if message["type"] == "http.response.start":
                answer = {200: "whole", 206: "range"}.get(message["status"])
                is_file = answer is not None
                is_head = is_file and scope["method"] == "HEAD"
                self._served.answered(ANYBODY, "head" if is_head else answer or "invalid_request")
            await send(message)
            if is_file and message["type"] == "http.response.body":
                self._served.sent(ANYBODY, len(message.get("body", b"")))

        await super().__call__(scope, receive, count)


def _check(sha256: str) -> str:
    if not _SHA256.match(sha256):
        raise Rejected("an artifact is named by 64 lower-case hex digits")
    return sha256
