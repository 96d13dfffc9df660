"""The HTTP API: FastAPI routes over the task store and the asset folders."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kiss3d_infer import __version__
from kiss3d_infer.bundle import (
    PUBLISHED,
    Bundle,
    load_bundle,
    opened_image,
    save_bundle,
)
from kiss3d_infer.bundle.layout import MAX_VIEWS
from kiss3d_infer.bundle.masks import require_shown
from kiss3d_infer.errors import InputError
from kiss3d_infer.files import writing
from kiss3d_infer.flux.models import Drawing
from kiss3d_infer.serve.assets import BUNDLE, MEDIA_TYPES, MESH, AssetStore, new_task_id
from kiss3d_infer.serve.config import ServeConfig
from kiss3d_infer.serve.dispatch import Dispatcher
from kiss3d_infer.serve.schema import (
    MAX_TILE,
    BundleToMesh,
    ErrorView,
    Health,
    Problem,
    TaskList,
    TaskRequest,
    TaskResult,
    TaskView,
    TextTo3D,
    problems_of,
)
from kiss3d_infer.serve.store import QueueFullError, Status, Task, TaskStore

_RETRY_AFTER = {"Retry-After": "10"}
_LINKS = {BUNDLE: "bundle", MESH: "mesh"}


class RefusedError(InputError):
    """The request is at fault (422); any other InputError, e.g. of a full disk, is a 500."""


def create_app(
    config: ServeConfig, store: TaskStore, assets: AssetStore, dispatcher: Dispatcher
) -> FastAPI:
    """Build the application; its lifespan runs the dispatcher.

    Routes that touch the disk are plain functions, which FastAPI runs beside the event loop.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await dispatcher.start()
        yield
        await dispatcher.stop(0)
        store.close()

    app = FastAPI(
        title="kiss3d",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={422: {"model": ErrorView}},
    )
    app.add_middleware(BodyLimit, max_bytes=config.http.max_body_mib * 2**20)
    _answer_errors_in_one_form(app)
    _add_task_routes(app, config, store, assets, dispatcher)
    _add_asset_route(app, assets)

    @app.get("/healthz")
    def health(response: Response) -> Health:
        if dispatcher.is_stopping:
            response.status_code = 503
        return Health(
            status="stopping" if dispatcher.is_stopping else "ok",
            version=__version__,
            types=config.task_types(),
            tasks=store.counts(),
            max_queued=config.queue.max_queued,
        )

    return app


def _add_task_routes(
    app: FastAPI, config: ServeConfig, store: TaskStore, assets: AssetStore, dispatcher: Dispatcher
) -> None:
    drawing = config.generator.model().drawing if config.generator else None

    @app.post("/v1/tasks", status_code=202)
    def submit(request: TaskRequest, http: Request, response: Response) -> TaskView:
        if dispatcher.is_stopping:
            raise HTTPException(503, "the server is stopping", headers=_RETRY_AFTER)
        task = _submit(request, drawing, config.queue.max_queued, store, assets)
        view = _view(task, assets, http)
        response.headers["Location"] = view.links["self"]
        return view

    @app.get("/v1/tasks")
    def newest(
        http: Request,
        status: Status | None = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> TaskList:
        return TaskList(tasks=[_view(task, assets, http) for task in store.newest(status, limit)])

    @app.get("/v1/tasks/{task_id}")
    def show(task_id: str, http: Request) -> TaskView:
        return _view(_known(store.get(task_id), task_id), assets, http)

    @app.delete("/v1/tasks/{task_id}")
    def cancel(task_id: str, http: Request) -> TaskView:
        task = _known(store.cancel(task_id), task_id)
        if task.status != "cancelled":
            raise HTTPException(409, f"the task has {task.status} already")
        return _view(task, assets, http)


def _add_asset_route(app: FastAPI, assets: AssetStore) -> None:
    @app.get("/v1/assets/{task_id}/{name}", response_class=FileResponse)
    def asset(task_id: str, name: str) -> FileResponse:
        try:
            path = assets.path(task_id, name)
        except KeyError:
            raise HTTPException(404, "no such asset") from None
        if not path.is_file():
            raise HTTPException(404, "no such asset, or not yet")
        return FileResponse(
            path,
            media_type=MEDIA_TYPES[name],
            filename=f"{task_id[:8]}-{name}",
            content_disposition_type="inline",
            headers={"X-Content-Type-Options": "nosniff"},
        )


def _submit(
    request: TextTo3D | BundleToMesh,
    drawing: Drawing | None,
    max_queued: int,
    store: TaskStore,
    assets: AssetStore,
) -> Task:
    task_id = new_task_id()
    if store.counts()["queued"] >= max_queued:
        raise _queue_full(max_queued)
    try:
        if isinstance(request, TextTo3D):
            request = _with_defaults(request, drawing)
        else:
            _place_bundle(request, task_id, assets)
        content = request.model_dump(mode="json")
        return store.add(task_id, request.type, content, max_queued=max_queued)
    except QueueFullError:
        assets.remove(task_id)
        raise _queue_full(max_queued) from None
    except Exception:
        assets.remove(task_id)
        raise


def _queue_full(max_queued: int) -> HTTPException:
    return HTTPException(429, f"{max_queued} tasks are waiting already", headers=_RETRY_AFTER)


def _with_defaults(request: TextTo3D, drawing: Drawing | None) -> TextTo3D:
    if drawing is None:
        raise RefusedError("this server has no generator", where="type", fix="send bundle_to_mesh")
    missing = {
        name: getattr(drawing, name)
        for name in ("tile", "steps", "guidance")
        if getattr(request, name) is None
    }
    return request.model_copy(update=missing)


def _place_bundle(request: BundleToMesh, task_id: str, assets: AssetStore) -> None:
    """Check the bundle while the client is still there, and store it under the task."""
    target = assets.path(task_id, BUNDLE)
    if request.bundle_of is not None:
        source = assets.path(request.bundle_of, BUNDLE)
        if not source.is_file():
            raise RefusedError("no task of this id has a bundle", where="bundle_of")
        with writing(target) as aside:
            shutil.copyfile(source, aside)
        return
    try:
        bundle = _checked_bundle(request.bundle or b"")
    except InputError as error:
        raise RefusedError(error.what, where="bundle", fix=error.fix) from error
    save_bundle(bundle, target)


def _checked_bundle(data: bytes) -> Bundle:
    # The size stands in the header: a bomb is refused before its pixels are decoded.
    with opened_image(data) as picture:
        width, height = picture.size
    if max(width // MAX_VIEWS, height // len(PUBLISHED.rows)) > MAX_TILE:
        raise InputError(f"the bundle is {width}x{height}: tiles may have {MAX_TILE} pixels")
    bundle = load_bundle(data)
    require_shown(bundle)
    return bundle


def _known(task: Task | None, task_id: str) -> Task:
    if task is None:
        raise HTTPException(404, f"no task {task_id[:40]!r}")
    return task


def _view(task: Task, assets: AssetStore, http: Request) -> TaskView:
    root = http.scope.get("root_path", "").rstrip("/")
    files = {_LINKS[name]: f"{root}/v1/assets/{task.id}/{name}" for name in assets.names(task.id)}
    return TaskView(
        id=task.id,
        type=task.type,
        status=task.status,
        stage=task.stage,
        progress=round(task.progress, 4),
        request=task.request,
        error=task.error,
        result=TaskResult.model_validate(task.result),
        created=datetime.fromtimestamp(task.created, UTC),
        started=_time(task.started),
        finished=_time(task.finished),
        links={"self": f"{root}/v1/tasks/{task.id}"} | files,
    )


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _answer_errors_in_one_form(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        problems = problems_of(error.errors())
        return _refusal(422, "; ".join(f"{p.field}: {p.problem}" for p in problems), problems)

    @app.exception_handler(RefusedError)
    async def unusable(_: Request, error: RefusedError) -> JSONResponse:
        remedy = f": {error.fix}" if error.fix else ""
        problem = Problem(field=str(error.where or "body"), problem=f"{error.what}{remedy}")
        return _refusal(422, f"{problem.field}: {problem.problem}", [problem])

    @app.exception_handler(StarletteHTTPException)
    async def refused(_: Request, error: StarletteHTTPException) -> JSONResponse:
        if error.status_code == 400:  # bytes that no JSON parser takes, e.g. not UTF-8
            problem = Problem(field="body", problem="not valid JSON")
            return _refusal(422, "body: not valid JSON", [problem])
        answer = _refusal(error.status_code, str(error.detail), [])
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(Exception)
    async def broken(_: Request, __: Exception) -> JSONResponse:
        return _refusal(500, "internal error; the server's log tells more", [])


def _refusal(status: int, error: str, problems: list[Problem]) -> JSONResponse:
    content: dict[str, Any] = ErrorView(error=error, problems=problems).model_dump()
    return JSONResponse(content, status)


class BodyLimit:
    """ASGI middleware that answers 413 instead of reading a request body beyond `max_bytes`."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with a `receive` that counts."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        received = 0

        async def counting() -> Message:
            nonlocal received
            if int(declared) <= self._max_bytes:
                message = await receive()
                received += len(message.get("body", b""))
                if received <= self._max_bytes:
                    return message
            limit = self._max_bytes // 2**20
            raise HTTPException(413, f"the request is larger than {limit} MiB")

        await self._app(scope, counting, send)
