"""How other devices reach the server: addresses, one-time links, QR codes."""

from __future__ import annotations

import io
import socket
from typing import Any

import pytest
from served import client

from linnaeus.console import Console, MessageStream
from linnaeus.inference.classifier import Classifier
from linnaeus.serve import invitations, sharing
from linnaeus.serve.app import Settings
from linnaeus.serve.invitations import Invitations
from linnaeus.serve.server import Server, bind
from linnaeus.serve.service import Service

ADDRESS = "http://192.168.7.9:8000"


def login(web: Any, link: str) -> Any:
    code = link.partition("#invitation=")[2]
    return web.post("/login", headers={"Authorization": f"Invitation {code}"})


def test_a_server_on_all_networks_names_the_address_that_other_devices_see(monkeypatch: pytest.MonkeyPatch):
    with bind("0.0.0.0", 0) as listener:
        port = listener.getsockname()[1]
        monkeypatch.setattr(sharing, "_outward", lambda family: "192.168.7.9")
        assert sharing.address_of(listener) == f"http://192.168.7.9:{port}"
        monkeypatch.setattr(sharing, "_outward", lambda family: None)  # no network
        assert sharing.address_of(listener) == f"http://127.0.0.1:{port}"
    with bind("127.0.0.1", 0) as listener:
        assert sharing.address_of(listener) == f"http://127.0.0.1:{listener.getsockname()[1]}"
    monkeypatch.undo()
    outward = sharing._outward(socket.AF_INET)
    assert outward is None or not outward.startswith(("127.", "0."))


def test_a_link_replaces_the_token_once(classifier: Classifier):
    with client(classifier, token="secret", address=ADDRESS) as web:
        assert web.post("/invitation").status_code == 401, "only who has the token can invite"
        answer = web.post("/invitation", headers={"Authorization": "Bearer secret"}).json()
        assert answer["once"] is True
        assert "secret" not in answer["link"]
        assert login(web, "#invitation=wrong").status_code == 401
        assert login(web, answer["link"]).status_code == 204
        assert web.get("/model").status_code == 200, "the cookie of the exchange"
        web.cookies.clear()
        again = login(web, answer["link"])
        assert (again.status_code, "used already" in again.json()["error"]) == (401, True)
        assert web.get("/model").status_code == 401


def test_invitations_expire_and_are_few():
    now = [0.0]
    open_ones = Invitations(lambda: now[0])
    first, second = open_ones.create(), open_ones.create()
    now[0] = invitations.LIFETIME - 1
    headers = [{"authorization": f"Invitation {code}"} for code in (first, second)]
    assert open_ones.redeem(headers[0])  # type: ignore[arg-type]
    now[0] += 2
    assert not open_ones.redeem(headers[1])  # type: ignore[arg-type]
    codes = [open_ones.create() for _ in range(invitations.MOST + 1)]
    assert not open_ones.redeem({"authorization": f"Invitation {codes[0]}"})  # type: ignore[arg-type]
    assert open_ones.redeem({"authorization": f"Invitation {codes[-1]}"})  # type: ignore[arg-type]


def test_the_page_is_shared_where_others_can_reach_it(classifier: Classifier):
    with client(classifier) as web:
        assert web.get("/model").json()["shared"] is False
        assert web.post("/invitation").status_code == 404
    with client(classifier, address=ADDRESS) as web:
        assert web.get("/model").json()["shared"] is True
        answer = web.post("/invitation", headers={"Host": "localhost:8000"}).json()
        assert (answer["link"], answer["once"]) == (ADDRESS, False)
        assert answer["code"].startswith("<svg")
        assert "<script" not in answer["code"]
        elsewhere = web.post("/invitation", headers={"Host": "flowers.example"}).json()
        assert elsewhere["link"] == "http://flowers.example", "behind a proxy the browser knows the address"
        foreign = web.post("/invitation", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"})
        assert foreign.status_code == 403


class Terminal(io.StringIO):
    def __init__(self, is_terminal: bool):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_link_is_printed_on_a_terminal_and_never_in_a_log(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch, is_terminal: bool
):
    monkeypatch.setattr(sharing, "_outward", lambda family: "192.168.7.9")
    stream = Terminal(is_terminal)
    with bind("0.0.0.0", 0) as listener:
        console = Console(stream=stream)
        server = Server(Service(classifier), Settings("tiny", "secret"), listener, console)
        server._invite()
    assert isinstance(console.stream, MessageStream)
    assert ("http://192.168.7.9" in stream.getvalue()) == is_terminal
    assert ("#invitation=" in stream.getvalue()) == is_terminal
    assert ("▀" in stream.getvalue()) == is_terminal
