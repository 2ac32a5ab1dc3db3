"""The routes. Files are read once at startup: nothing in a request is ever used as a path."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import escape
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from linnaeus._version import __version__
from linnaeus.data.class_names import printable
from linnaeus.errors import JobError, exhausted, out_of
from linnaeus.serve import examples, openapi, pages, sharing
from linnaeus.serve.access import LOGIN, AccessControl, Credentials, error_response, login_response
from linnaeus.serve.limits import RefusedError
from linnaeus.serve.model_info import model_info
from linnaeus.serve.service import Service
from linnaeus.serve.upload_memory import UploadMemory, return_memory_soon
from linnaeus.serve.uploads import read_uploads

T = TypeVar("T")
JSON, JSON_LINES = "application/json", "application/x-ndjson"
MAX_TOP = 1000
ORIGIN = "http://origin.invalid"  # in the rendered documentation, replaced by the server's in each response


@dataclass(frozen=True)
class Settings:
    """What a server shows and whom it serves, besides its limits."""

    name: str  # name of the model
    token: str | None = None
    hosts: frozenset[str] | None = None  # accepted names in the Host header, in lower case; None accepts any
    # Origins of other servers whose pages may send requests, in lower case, or `*`.
    origins: frozenset[str] = frozenset()
    report: str | None = None  # text of the run's report.html, if there is one
    examples: tuple[dict[str, str], ...] = ()  # images to click, as `read_examples` gives them
    address: str | None = None  # `http://host:port` at which other devices reach the server; None if they cannot


def make_app(service: Service, settings: Settings, credentials: Credentials | None = None) -> AccessControl:
    """The complete server as an ASGI application. `service` starts and stops with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await service.start()
        except Exception as error:
            if lack := exhausted(error):
                raise JobError(out_of(lack)) from None
            raise
        yield
        await service.stop()

    # FastAPI's own documentation pages load scripts from the internet; /docs is rendered here instead.
    app = FastAPI(
        title="linnaeus serve",
        version=__version__,
        description=openapi.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    credentials = credentials or Credentials(settings.token)
    add_error_handlers(app)
    _add_prediction_routes(app, service, settings)
    _add_monitoring_routes(app, service)
    _add_page_routes(app, settings, credentials)
    # Sharing needs an address that other devices can reach.
    if settings.address is not None:
        sharing.add_routes(app, settings.address, credentials.invitations if settings.token else None)
    routes = [route.path for route in app.routes if hasattr(route, "path")]
    return AccessControl(app, credentials, service.metrics, routes, settings.hosts, settings.origins)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error with one line of JSON."""

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return error_response(error.status, error.reason, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return error_response(422, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Response:
        return error_response(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(ClientDisconnect)
    async def disconnected(request: Request, error: ClientDisconnect) -> Response:
        return error_response(400, "the request is incomplete")  # nobody receives it, but it is counted

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        if lack := exhausted(error):
            return error_response(503, f"the server is out of {lack}; try again later", {"Retry-After": "1"})
        return error_response(500, "internal server error; see the server's log")


def _add_prediction_routes(app: FastAPI, service: Service, settings: Settings) -> None:
    memory = UploadMemory(service.limits.total_bytes, return_memory_soon)
    service.metrics.upload_bytes.set_function(lambda: memory.used)
    unreadable: dict[int | str, dict[str, Any]] = {
        422: {"model": openapi.Predictions | openapi.Error, "description": "no image in the request can be read"}
    }

    @app.post(
        "/predict",
        summary="Classify images",
        response_model=openapi.Predictions,
        responses={**openapi.error_responses(400, 401, 403, 408, 413, 415, 421, 503), **unreadable},
        openapi_extra=openapi.REQUEST_BODY,
    )
    async def predict(
        request: Request,
        top: Annotated[
            int | None,
            Query(
                ge=1, le=MAX_TOP, description="number of classes; by default 5, or all if images have several labels"
            ),
        ] = None,
        explain: Annotated[bool, Query(description="add a heat map and similar training images")] = False,
    ) -> Response:
        """Predictions in the order of the images, as JSON, or as JSON lines with Accept: application/x-ndjson.

        The status is 422 if none of the images can be read.
        """
        client = "" if request.client is None else request.client.host
        if explain:
            service.explainer.admission.check(1, client)  # before the body is read and parsed
        with memory.reserve(client) as reservation:
            uploads = await read_uploads(request, service.limits, reservation)
            answers = await until_disconnected(request, service.predict(uploads, top, explain, client))
        results = [answer.to_dict() for answer in answers]
        # Several images: one that cannot be read does not fail the request.
        status = 422 if all(result["error"] is not None for result in results) else 200
        if request.headers.get("accept", "") == JSON_LINES:
            lines = "".join(json.dumps(result, ensure_ascii=False) + "\n" for result in results)
            # Names may hold characters that UTF-8 cannot encode.
            return Response(printable(lines), status, media_type=JSON_LINES)
        text = json.dumps({"predictions": results}, ensure_ascii=False) + "\n"
        return Response(printable(text), status, media_type=JSON)

    @app.get("/model", summary="Describe the model", responses=openapi.error_responses(401, 403, 421))
    async def model() -> dict[str, Any]:
        """Classes, metrics with counts and intervals, and the limits of this server."""
        more = {"shared": settings.address is not None, "examples": bool(settings.examples)}
        return model_info(service, settings.name, report=settings.report is not None) | more


async def until_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client disconnects. Raises ClientDisconnect in that case.

    The body of the request must have been read.
    """

    async def disconnection() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(disconnection())
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


def _add_monitoring_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health", summary="Liveness: whether the process responds", responses=openapi.error_responses(403, 421))
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(
        "/ready", summary="Readiness: whether images are accepted", responses=openapi.error_responses(403, 421, 503)
    )
    async def ready() -> dict[str, str]:
        if not service.ready or service.batcher.admission.full:
            raise RefusedError(503, "starting, stopping, or at capacity", retry_after=1)
        return {"status": "ready"}

    @app.get(
        "/metrics",
        summary="Metrics for Prometheus",
        response_class=PlainTextResponse,
        responses=openapi.error_responses(401, 403, 421),
    )
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page_routes(app: FastAPI, settings: Settings, credentials: Credentials) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page(request: Request) -> Response:
        language = pages.choose_language(request.headers.get("accept-language", ""))
        # The name of the model is shown only to those who may use it.
        name = settings.name if credentials.accepts(request.headers) else ""
        headers = {"Vary": "Accept-Language", "Content-Language": language}
        return HTMLResponse(pages.render_page(language, name), headers=headers)

    # Once: hashing the scripts takes milliseconds, and responses that are not read share their bodies.
    policy = pages.report_policy(settings.report or "")
    report_body, example_body = (settings.report or "").encode(), examples.to_json(settings.examples)

    for name, media_type in pages.STATIC.items():
        _add_static_route(app, name, media_type)

    @app.get("/docs", response_class=HTMLResponse, include_in_schema=False)
    async def docs(request: Request) -> Response:
        return HTMLResponse(docs_page().replace(ORIGIN, escape(str(request.base_url).rstrip("/"))))

    @functools.cache  # rendering takes several milliseconds, and anyone may ask for it
    def docs_page() -> str:
        return pages.render_docs(app.openapi(), ORIGIN)

    @app.get("/report", response_class=HTMLResponse, include_in_schema=False)
    async def report() -> Response:
        if settings.report is None:
            raise HTTPException(404, "no report: the server was not started with a run folder that has one")
        return HTMLResponse(report_body, headers={"Content-Security-Policy": policy})

    @app.get(f"/{examples.FILE}", include_in_schema=False)
    async def example_images() -> Response:
        return Response(example_body, media_type=JSON)

    @app.post(LOGIN, include_in_schema=False)
    async def login(request: Request) -> Response:
        return login_response(request, credentials)


def _add_static_route(app: FastAPI, name: str, media_type: str) -> None:
    body, tag = pages.read_static(name)

    @app.get(f"/{name}", include_in_schema=False)
    async def static(request: Request) -> Response:
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=media_type, headers=headers)
