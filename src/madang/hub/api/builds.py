"""Routes of the build queue: for people behind the admin token, for workers behind their own."""

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from madang.hub import builds
from madang.hub.build_uploads import BuildUploads
from madang.hub.parts import HubParts
from madang.machine.build import check_holder
from madang.model import ArtifactFile
from madang.model.build import Build, BuildRequest, BuildWorker
from madang.runtime.admin_http import json_response, read_body, takes
from madang.wire.artifacts import FileChunks

_bearer = HTTPBearer(auto_error=False)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
Attempt = Annotated[int, Query(ge=1)]


class BuildFailure(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt ended without a result; `is_final` says that trying again cannot help."""

    log: str
    is_final: bool = False


class BuildResult(msgspec.Struct, frozen=True, kw_only=True):
    """What came out; every file was uploaded before."""

    files: tuple[ArtifactFile, ...]


def make_router(parts: HubParts) -> APIRouter:
    """Return the routes behind the admin token."""
    router = APIRouter(prefix="/api/v1", tags=["builds"])

    @router.get("/builds")
    async def list_builds(model: str | None = None) -> Response:
        now_s = parts.clock.wall_s()
        return json_response(await parts.store.read(lambda c: builds.list_builds(c, now_s, model)))

    @router.post("/builds", openapi_extra=takes(BuildRequest))
    async def request_build(request: Request) -> Response:
        body = await read_body(request, BuildRequest)
        build, is_new = await parts.changer.run(lambda change: builds.put_build(change, body))
        return json_response(build, 201 if is_new else 200)

    @router.get("/builds/{build_id}")
    async def show_build(build_id: str) -> Response:
        now_s = parts.clock.wall_s()
        return json_response(await parts.store.read(lambda c: builds.read_build(c, build_id, now_s)))

    @router.post("/builds/{build_id}/cancel")
    async def cancel_build(build_id: str) -> Response:
        return json_response(await parts.changer.run(lambda change: builds.cancel(change, build_id)))

    @router.post("/builds/{build_id}/retry")
    async def retry_build(build_id: str) -> Response:
        return json_response(await parts.changer.run(lambda change: builds.retry(change, build_id)))

    @router.get("/build-workers")
    async def list_workers() -> Response:
        return json_response(await parts.store.read(builds.list_workers))

    @router.post("/build-workers", openapi_extra=takes(BuildWorker))
    async def put_worker(request: Request) -> Response:
        body = await read_body(request, BuildWorker)
        token = await parts.changer.run(lambda change: builds.put_worker(change, body, parts.entropy))
        return json_response({"worker": body, "token": token}, 201)

    @router.delete("/build-workers/{name}")
    async def delete_worker(name: str) -> Response:
        await parts.changer.run(lambda change: builds.delete_worker(change, name))
        return json_response({"name": name, "is_deleted": True})

    return router


def make_work_router(parts: HubParts) -> APIRouter:
    """Return the routes behind workers' tokens."""
    router = APIRouter(prefix="/api/v1/work", tags=["builds"])
    uploads = BuildUploads(parts.artifacts)

    async def worker_of(credentials: Credentials) -> BuildWorker:
        token = credentials.credentials if credentials is not None else ""
        return await parts.store.read(lambda c: builds.find_worker(c, token))

    Worker = Annotated[BuildWorker, Depends(worker_of)]  # noqa: N806 (an alias of a type)

    async def check(worker: BuildWorker, build_id: str, attempt: int) -> Build:
        now_s = parts.clock.wall_s()
        build = await parts.store.read(lambda c: builds.read_build(c, build_id, now_s))
        check_holder(build, worker.name, attempt)
        return build

    @router.post("/take", response_model=None)
    async def take(worker: Worker) -> Response:
        build = await parts.changer.run(lambda change: builds.take(change, worker), actor=worker.name)
        return Response(status_code=204) if build is None else json_response(build)

    @router.post("/{build_id}/hold", response_model=None)
    async def hold(worker: Worker, build_id: str, attempt: Attempt) -> Response:
        action = parts.changer.run(lambda change: builds.hold(change, worker, build_id, attempt), actor=worker.name)
        return json_response(await action)

    @router.post("/{build_id}/files", response_model=None)
    async def declare(worker: Worker, build_id: str, attempt: Attempt, request: Request) -> Response:
        await check(worker, build_id, attempt)
        return json_response({"missing": await uploads.declare(await read_body(request, FileChunks))})

    @router.put("/{build_id}/files/{sha256}/chunks/{index}", response_model=None)
    async def put_chunk(
        worker: Worker, build_id: str, sha256: str, index: int, attempt: Attempt, request: Request
    ) -> Response:
        await check(worker, build_id, attempt)
        await uploads.put_chunk(sha256, index, await request.body())
        return Response(status_code=204)

    @router.post("/{build_id}/finish", response_model=None)
    async def finish(worker: Worker, build_id: str, attempt: Attempt, request: Request) -> Response:
        files = (await read_body(request, BuildResult)).files
        now_s = parts.clock.wall_s()
        build = await parts.store.read(lambda c: builds.read_build(c, build_id, now_s))
        await uploads.keep(files, build.request.key)
        action = parts.changer.run(
            lambda change: builds.finish(change, worker, build_id, attempt, files), actor=worker.name
        )
        return json_response(await action)

    @router.post("/{build_id}/fail", response_model=None)
    async def fail(worker: Worker, build_id: str, attempt: Attempt, request: Request) -> Response:
        body = await read_body(request, BuildFailure)
        action = parts.changer.run(
            lambda change: builds.fail(change, worker, build_id, attempt, body.log, is_final=body.is_final),
            actor=worker.name,
        )
        return json_response(await action)

    return router
