"""A labelling server in this process, over a folder of tiny images whose class is in their name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starlette.testclient import TestClient
from tiny import write_images

from linnaeus.console import Console
from linnaeus.label.app import make_app
from linnaeus.label.backbone import Backbone, colors
from linnaeus.label.features import Features
from linnaeus.label.finish import Finish
from linnaeus.label.labels_csv import LabelStore
from linnaeus.label.session import Session, list_images
from linnaeus.label.state import LabelServer
from linnaeus.label.thumbnails import Thumbnails
from linnaeus.serve.limits import Limits


class Page(TestClient):
    """A client, and the server that it talks to."""

    server: LabelServer

    def get_json(self, path: str):
        response = self.get(path)
        assert response.status_code == 200, response.text
        return response.json()

    def put_json(self, path: str, **body):
        response = self.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def truth(self, image: int) -> str:
        """The class of an image, from its name."""
        return Path(self.server.session.features.paths[image]).name.split()[0]

    def settle(self) -> dict:
        """The state once all features are there and the head knows all answers."""
        session = self.server.session
        for _ in range(400):
            state = self.get_json("/api/state")
            known = sum(label.label != "" for label in session.labels.values())
            if state["features"]["done"] == state["images"] and session.view.learned.n == known:
                return state
            time.sleep(0.01)
        raise AssertionError(f"the head is not up to date: {state}")


def new_server(folder: Path, order: str = "mixed", backbone: Backbone | None = None) -> LabelServer:
    store = LabelStore.open(folder, folder / "labels.csv")
    features = Features(folder, list_images(folder), backbone or colors())
    session = Session.open(store, features, order, Console(silent=True))
    finish = Finish(session, folder.parent / "runs", "cpu")
    return LabelServer(session, Thumbnails(folder, features.paths), finish, Limits(), folder.name, [])


@contextmanager
def opened(folder: Path, order: str = "mixed", backbone: Backbone | None = None) -> Iterator[Page]:
    """A client of a running server of `folder`."""
    server = new_server(folder, order, backbone)
    page = Page(make_app(server, None, frozenset({"testserver"})), base_url="http://testserver")
    page.server = server
    with page:
        yield page


def photos(folder: Path, each: int = 16, classes: tuple[str, ...] = ("a", "b", "c")) -> Path:
    """`each` images of each class in one folder, so that no subfolder reveals the class."""
    write_images(folder / "by class", classes, each)
    for file in sorted((folder / "by class").rglob("*.png")):
        file.rename(folder / file.name)
        if not any(file.parent.iterdir()):
            file.parent.rmdir()
    (folder / "by class").rmdir()
    return folder
