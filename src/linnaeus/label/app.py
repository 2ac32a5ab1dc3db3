"""The routes of `linnaeus label`. Images are named by number: nothing in a request is ever used as a path."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request
from fastapi.responses import HTMLResponse, Response

from linnaeus._version import __version__
from linnaeus.data.class_names import printable
from linnaeus.data.images.decode import UnreadableError
from linnaeus.errors import DiskError, UserError
from linnaeus.label.acceptance import SURE
from linnaeus.label.journal import UNKNOWN
from linnaeus.label.page import render_page
from linnaeus.label.request_bodies import MAX_IMAGES, AnswerBody, ImagesBody, NameBody, NumberBody, read_body
from linnaeus.label.state import LabelServer, card, describe
from linnaeus.serve import pages
from linnaeus.serve.access import LOGIN, AccessControl, Credentials, error_response, login_response
from linnaeus.serve.app import add_error_handlers
from linnaeus.serve.metrics import Metrics

SUSPECTS = 60  # shown at once


def make_app(server: LabelServer, token: str | None, hosts: frozenset[str] | None) -> AccessControl:
    """The complete server as an ASGI application, behind the access control of `linnaeus serve`."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await server.start()
        yield
        await server.stop()

    app = FastAPI(title="linnaeus label", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    credentials = Credentials(token)
    add_error_handlers(app)

    @app.exception_handler(UserError)
    async def wrong(request: Request, error: UserError) -> Response:
        # The page keeps what the disk had no room for, and sends it again.
        return error_response(507 if isinstance(error, DiskError) else 400, str(error))

    _add_page(app, server, credentials)
    _add_reading(app, server)
    _add_answering(app, server)
    _add_proposals(app, server)
    routes = [route.path for route in app.routes if hasattr(route, "path")]
    return AccessControl(app, credentials, Metrics(), routes, hosts)


def _add_page(app: FastAPI, server: LabelServer, credentials: Credentials) -> None:
    @app.get("/", response_class=HTMLResponse)
    async def page(request: Request) -> Response:
        language = pages.choose_language(request.headers.get("accept-language", ""))
        text, policy = render_page(language)
        headers = {"Vary": "Accept-Language", "Content-Language": language, "Content-Security-Policy": policy}
        return HTMLResponse(text, headers=headers)

    @app.post(LOGIN)
    async def login(request: Request) -> Response:
        return login_response(request, credentials)

    @app.get("/image/{image}")
    def image(image: int, side: Annotated[int, Query(ge=1, le=4096)] = 640) -> Response:
        if not 0 <= image < len(server.thumbnails.paths):
            return error_response(404, f"no image {image}; the folder has {len(server.thumbnails.paths)}")
        try:
            data = server.thumbnails.get(image, side)
        except UnreadableError as error:
            return error_response(422, error.reason)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})


def _add_reading(app: FastAPI, server: LabelServer) -> None:
    session = server.session

    @app.get("/api/state")
    def state() -> Response:
        """Progress, classes, figures and what is proposed."""
        return _json(describe(server))

    @app.get("/api/next")
    def questions(n: Annotated[int, Query(ge=1, le=64)] = 4, shown: str = "") -> Response:
        """The next questions; `shown`: numbers of the images that the page shows already, with commas."""
        # Numbers come from the address, so anything that is not a number is ignored.
        excluded = [int(part) for part in shown.split(",")[:MAX_IMAGES] if part.strip().isdecimal()]
        chosen = session.questions(n, excluded)
        return _json({"questions": [card(server, q.image, q.reason) for q in chosen]})

    @app.get("/api/alike/{image}")
    def alike(image: int, n: Annotated[int, Query(ge=1, le=60)] = 23) -> Response:
        """The unlabelled images that are most similar to an image, itself first; `same`: perhaps of the same kind."""
        images = [(image, True), *session.alike(image, n)]
        return _json({"images": [card(server, i, "alike") | {"same": same} for i, same in images]})

    @app.get("/api/card/{image}")
    def one(image: int, path: str | None = None) -> Response:
        """An image, found by its path if its number is old."""
        return _json(card(server, session.places([image], None if path is None else [path])[0], "file"))

    @app.get("/api/labelled")
    def labelled(label: str, n: Annotated[int, Query(ge=1, le=200)] = 60) -> Response:
        """The images of a class that were labelled last."""
        rows = [(mark.record, path) for path, mark in session.labels.items() if mark.label == label]
        positions = session.learner.positions(path for _, path in sorted(rows, reverse=True)[:n])
        return _json({"images": [card(server, i, "labelled") for i in positions]})

    @app.get("/api/skipped")
    def skipped() -> Response:
        """The images that were skipped."""
        return _json({"images": [card(server, i, "skipped") for i in sorted(session.skipped)[:MAX_IMAGES]]})


def _add_answering(app: FastAPI, server: LabelServer) -> None:
    session = server.session

    @app.post("/api/answer")
    async def answer(request: Request) -> Response:
        """Label images. The answer is on the disk when this returns its number."""
        body = await read_body(request, AnswerBody, server.limits)
        label = UNKNOWN if body.unknown else body.label
        if label == UNKNOWN and not body.unknown:
            raise UserError("an empty class; name one, or send unknown: true")
        images = session.places(body.images, body.paths)
        # In a thread: fsync may take tens of milliseconds, in which no image would be served.
        record = await asyncio.to_thread(session.answer, images, label, body.batch)
        result: dict[str, Any] = {"record": record}
        if body.batch is not None:
            result["batch"] = session.batches.known[body.batch].to_dict()
        # Only for a single answer: a group that was labelled at once contains its duplicates.
        twins = await asyncio.to_thread(session.duplicates, images[0]) if len(images) == 1 and label else []
        result["duplicates"] = [card(server, i, "duplicate") for i in twins[:MAX_IMAGES]]
        return _json(result)

    @app.post("/api/undo")
    async def undo(request: Request) -> Response:
        body = await read_body(request, NumberBody, server.limits)
        images = await asyncio.to_thread(session.undo, body.number)
        return _json({"images": [card(server, i, "undone") for i in images[:MAX_IMAGES]]})

    @app.post("/api/skip")
    async def skip(request: Request) -> Response:
        body = await read_body(request, ImagesBody, server.limits)
        images = session.places(body.images, body.paths)
        return _json({"record": await asyncio.to_thread(session.skip, images)})

    @app.post("/api/class")
    async def add_class(request: Request) -> Response:
        body = await read_body(request, NameBody, server.limits)
        name, record = await asyncio.to_thread(session.add_class, body.name)
        return _json({"name": name, "record": record})


def _add_proposals(app: FastAPI, server: LabelServer) -> None:
    session = server.session

    @app.get("/api/suspects")
    def suspects() -> Response:
        """Labelled images whose held-out answer is another class, the surest first."""
        mistakes = session.suspects()[:SUSPECTS]
        proposals = [{"suggested": suspect.suggested, "probability": suspect.probability} for suspect in mistakes]
        cards = [card(server, suspect.image, "suspect") for suspect in mistakes]
        return _json({"images": [shown | more for shown, more in zip(cards, proposals, strict=True)]})

    @app.get("/api/groups")
    def groups() -> Response:
        """Groups of images far from all classes, each perhaps a new class."""
        return _json({"groups": [[card(server, i, "far") for i in group[:60]] for group in session.view.groups[:5]]})

    @app.get("/api/batch")
    def batch(at_least: Annotated[float, Query(ge=0.5, lt=1)] = SURE) -> Response:
        """The unlabelled images that the head is at least so sure of, with a sample to verify."""
        return _json(session.propose_batch(at_least))

    @app.post("/api/batch")
    async def accept(request: Request) -> Response:
        """Accept a batch whose sample was verified."""
        body = await read_body(request, NumberBody, server.limits)
        record, n = await asyncio.to_thread(session.accept, body.number)
        return _json({"record": record, "n": n})

    @app.post("/api/finish")
    async def finish() -> Response:
        """Train on the labels, in a process of its own."""
        run = await asyncio.to_thread(server.finish.start)
        return _json({"run": str(run)})


def _json(values: Any) -> Response:
    return Response(printable(json.dumps(values, ensure_ascii=False)) + "\n", media_type="application/json")
