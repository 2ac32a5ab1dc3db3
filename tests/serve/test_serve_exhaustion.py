"""A server without memory, threads, processes or open files says so, and goes on once it has them again."""

from __future__ import annotations

import errno
import logging
import os
import sys
from pathlib import Path

import pytest
from served import ThreadServer, client, error, png

from linnaeus.console import Console
from linnaeus.errors import JobError
from linnaeus.inference.classifier import Classifier
from linnaeus.serve import repeated_errors
from linnaeus.serve.gallery import load_gallery
from linnaeus.serve.repeated_errors import OneTraceback
from linnaeus.serve.service import Service

LACKS = [
    (MemoryError(), "memory"),
    (RuntimeError("can't start new thread"), "memory or threads"),
    (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "processes"),
    (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "open files"),
]


@pytest.mark.parametrize(("failure", "lack"), LACKS)
def test_a_request_that_lacks_something_may_be_sent_again(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, failure: Exception, lack: str
):
    async def fail(*_: object) -> None:
        raise failure

    with client(classifier) as web:
        with monkeypatch.context() as during:
            during.setattr(web.service, "predict", fail)
            response = web.post("/predict", content=png(), headers={"Content-Type": "image/png"})
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        assert error(response) == f"the server is out of {lack}; try again later"
        assert web.post("/predict", content=png(), headers={"Content-Type": "image/png"}).status_code == 200


@pytest.mark.parametrize(("failure", "lack"), LACKS)
def test_the_log_says_it_once_a_minute_and_without_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, failure: Exception, lack: str
):
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(OneTraceback())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    now = [1000.0]
    monkeypatch.setattr(repeated_errors.time, "monotonic", lambda: now[0])
    for seconds in (0, 0.1, 59, 2, 1):
        now[0] += seconds
        logger.error("accept() failed 50 %%\nsocket: <%s>\n", "fd=3", exc_info=failure)
    line = f"out of {lack} (accept() failed 50 %); close other programs, or allow this one more"
    assert capsys.readouterr().out.splitlines() == [line, line]


def test_a_start_that_fails_is_one_line_in_the_log(classifier: Classifier, monkeypatch: pytest.MonkeyPatch):
    async def fail(_: Service) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Service, "start", fail)
    server = ThreadServer(classifier).server
    messages: list[str] = []
    handler = logging.StreamHandler()
    monkeypatch.setattr(handler, "emit", lambda record: messages.append(record.getMessage()))
    logging.getLogger("uvicorn.error").addHandler(handler)
    try:
        with pytest.raises(JobError, match="could not start"):
            server.serve_until_stopped()
    finally:
        logging.getLogger("uvicorn.error").removeHandler(handler)
    assert messages[0] == "out of memory or threads; close other programs, or allow this one more"
    assert not [message for message in messages if "Traceback" in message]


def test_without_threads_answers_come_without_similar_images(
    classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("linnaeus.explain.neighbors.gallery", fail)
    with load_gallery(Service(classifier), str(tmp_path), Console()):
        pass
    assert "warning: no training images to compare with: out of memory or threads" in capsys.readouterr().err
