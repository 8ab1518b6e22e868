"""Routes of the artifact store, and what of which model is where."""

import re

from fastapi import APIRouter, Response
from starlette.responses import FileResponse

from madang.core import Rejected
from madang.hub.parts import HubParts
from madang.runtime.admin_http import NotFound, json_response
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

    return router


def make_store_router(parts: HubParts) -> APIRouter:
    """Return the artifact store's routes: open, since what is named by its hash needs no secret to be safe."""
    router = APIRouter(tags=["artifacts"])
    artifacts = parts.artifacts

    @router.head("/artifacts/{sha256}", include_in_schema=False)
    @router.get("/artifacts/{sha256}")
    async def get_artifact(sha256: str) -> Response:
        path = artifacts.find(_check(sha256))
        if path is None:
            raise NotFound(f"artifact {sha256} is not in this store")
        headers = {"etag": f'"{sha256}"', **_FOR_EVER}
        return FileResponse(path, media_type="application/octet-stream", headers=headers)

    @router.get("/artifacts/{sha256}/manifest")
    async def get_manifest(sha256: str) -> Response:
        document = await artifacts.find_manifest(_check(sha256))
        if document is None:
            raise NotFound(f"artifact {sha256} is not in this store")
        return Response(document, media_type="application/json", headers=_FOR_EVER)

    return router


def _check(sha256: str) -> str:
    if not _SHA256.match(sha256):
        raise Rejected("an artifact is named by 64 lower-case hex digits")
    return sha256
