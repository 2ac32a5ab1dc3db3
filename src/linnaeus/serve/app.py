"""The routes. What a browser loads is read once, at the start: nothing that a request says reaches the disk."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from linnaeus._version import __version__
from linnaeus.data.class_names import printable
from linnaeus.serve import openapi, pages
from linnaeus.serve.access import COOKIE, AccessControl, Credentials, error_line
from linnaeus.serve.limits import Held, RefusedError
from linnaeus.serve.model_info import model_info
from linnaeus.serve.service import Service
from linnaeus.serve.uploads import receive

JSON, LINES = "application/json", "application/x-ndjson"
MOST_TOP = 1000


@dataclass(frozen=True)
class Settings:
    """What a server was told, beside the limits."""

    name: str
    """Of the model, to show."""
    token: str | None = None
    hosts: frozenset[str] | None = None
    """Names that may stand in a request's Host, in lower case; None takes any."""
    report: str | None = None
    """The text of the run's report.html, where there is one."""


def make_app(service: Service, settings: Settings) -> AccessControl:
    """The whole server as an ASGI application. `service` starts and stops with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="linnaeus serve", version=__version__, description=openapi.ABOUT, docs_url=None,
        redoc_url=None, lifespan=lifespan,
    )  # fmt: skip
    keys = Credentials(settings.token)
    _refusals(app)
    _asking(app, service, settings)
    _watching(app, service)
    _browsing(app, settings, keys)
    routes = [route.path for route in app.routes if hasattr(route, "path")]
    return AccessControl(app, keys, service.metrics, routes, settings.hosts)


def _refusals(app: FastAPI) -> None:
    """Whatever goes wrong is one line of JSON."""

    def line(status: int, why: str, headers: Any = None) -> Response:
        return Response(error_line(why), status, dict(headers or {}), JSON)

    @app.exception_handler(RefusedError)
    async def refused(request: Request, error: RefusedError) -> Response:
        return line(error.status, error.why, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return line(422, f"{'.'.join(map(str, first['loc'][1:]))}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Response:
        return line(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return line(400, "the request was cut short")  # nobody reads it, but it is counted

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        return line(500, "the server failed; its log says why")


def _asking(app: FastAPI, service: Service, settings: Settings) -> None:
    held = Held(service.limits.held_bytes)
    service.metrics.held_bytes.set_function(lambda: held.now)
    unread: dict[int | str, dict[str, Any]] = {
        422: {"model": openapi.Answers | openapi.Refusal, "description": "no image of the request can be read"}
    }

    @app.post(
        "/predict",
        summary="Classify images",
        response_model=openapi.Answers,
        responses={**openapi.refusals(400, 401, 408, 413, 415, 421, 503), **unread},
        openapi_extra=openapi.BODY,
    )
    async def predict(
        request: Request,
        top: Annotated[int, Query(ge=1, le=MOST_TOP, description="classes to name")] = 5,
        explain: Annotated[bool, Query(description="with heat map, and what looks alike")] = False,
    ) -> Response:
        """Answers in the order of the images, as JSON; as JSON lines where Accept is application/x-ndjson.

        The status is 422 where none of the images can be read.
        """
        with held.account() as account:
            uploads = await receive(request, service.limits, account)
            answers = [each.to_dict() for each in await service.predict(uploads, top, explain)]
        status = 422 if all(each["error"] is not None for each in answers) else 200
        if request.headers.get("accept", "") == LINES:
            lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in answers)
            return Response(printable(lines), status, media_type=LINES)
        text = json.dumps({"predictions": answers}, ensure_ascii=False) + "\n"
        return Response(printable(text), status, media_type=JSON)

    @app.get("/model", summary="The model's card", responses=openapi.refusals(401, 421))
    async def model() -> dict[str, Any]:
        """What the model is, how good it is with counts and intervals, and what this server takes."""
        return model_info(service, settings.name, report=settings.report is not None)


def _watching(app: FastAPI, service: Service) -> None:
    @app.get("/health", summary="Whether the process lives", responses=openapi.refusals(421))
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Whether an image would be let in", responses=openapi.refusals(421, 503))
    async def ready() -> dict[str, str]:
        if not service.ready or service.batcher.full:
            raise RefusedError(503, "starting, stopping, or full", retry_after=1)
        return {"status": "ready"}

    @app.get(
        "/metrics", summary="Figures for Prometheus", response_class=PlainTextResponse,
        responses=openapi.refusals(401, 421),
    )  # fmt: skip
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _browsing(app: FastAPI, settings: Settings, keys: Credentials) -> None:
    hidden: dict[str, Any] = {"include_in_schema": False}

    @app.get("/", response_class=HTMLResponse, **hidden)
    async def page(request: Request) -> Response:
        language = pages.choose_language(request.headers.get("accept-language", ""))
        name = settings.name if keys.accepts(request.headers) else ""
        vary = {"Vary": "Accept-Language", "Content-Language": language}
        return HTMLResponse(pages.render_page(language, name), headers=vary)

    for name, kind in pages.STATIC.items():
        _serve_static(app, name, kind)

    @app.get("/docs", response_class=HTMLResponse, **hidden)
    async def docs(request: Request) -> Response:
        return HTMLResponse(pages.render_docs(app.openapi(), str(request.base_url).rstrip("/")))

    @app.get("/report", response_class=HTMLResponse, **hidden)
    async def report() -> Response:
        if settings.report is None:
            raise HTTPException(404, "this model has no report: give the run folder as MODEL")
        return HTMLResponse(settings.report, headers={"Content-Security-Policy": pages.report_policy(settings.report)})

    @app.post("/login", **hidden)
    async def login(request: Request) -> Response:
        """For a browser, which has shown the token once: a cookie, so that links work too."""
        answer = Response(status_code=204)
        secure = request.url.scheme == "https"
        answer.set_cookie(COOKIE, keys.session, httponly=True, samesite="strict", secure=secure)
        return answer


def _serve_static(app: FastAPI, name: str, kind: str) -> None:
    body, tag = pages.static(name)

    @app.get(f"/{name}", include_in_schema=False)
    async def static(request: Request) -> Response:
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type=kind, headers=headers)
