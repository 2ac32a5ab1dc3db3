"""Who may ask `linnaeus serve`, what every answer carries, and what a browser loads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from served import OCTETS, Client, client, error, png, write_model_with_opinions

from linnaeus.inference.classifier import Classifier, load
from linnaeus.serve.access import is_loopback
from linnaeus.serve.limits import Limits
from linnaeus.serve.pages import choose_language, words


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return load(write_model_with_opinions(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def web(classifier: Classifier) -> Iterator[Client]:
    with client(classifier, Limits(request_bytes=50_000, images=4, pixels=1_000_000)) as found:
        yield found


def test_the_token_is_asked_of_all_that_says_something_of_the_model(classifier: Classifier):
    with client(classifier, token="geheim", report="<p>report") as web:
        for method, path in (
            ("POST", "/predict"),
            ("GET", "/model"),
            ("GET", "/metrics"),
            ("GET", "/report"),
            ("POST", "/login"),
            ("GET", "/x"),
        ):
            for given, told in (
                ({}, "needs the token: "),
                ({"Authorization": "Bearer gehei"}, "a wrong token"),
                ({"Authorization": "Basic geheim"}, "not in another scheme"),
                ({"Cookie": "linnaeus=geheim"}, "a wrong token"),
                ({"Cookie": "other=geheim"}, "needs the token: "),
            ):
                answer = web.request(method, path, headers=given)
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"] == "Bearer"
                assert told in error(answer)
        bearer = {"Authorization": "Bearer geheim"}
        assert web.get("/model", headers=bearer).status_code == 200
        assert web.post("/predict", content=png(), headers={**OCTETS, **bearer}).status_code == 200
        for path in ("/", "/page.js", "/health", "/ready", "/docs", "/openapi.json"):
            assert web.get(path).status_code == 200, path
            assert "tiny" not in web.get(path).text, "the name of the model"
        assert web.post("/login", headers=bearer).status_code == 204
        assert web.get("/report").status_code == 200, "by the cookie"
        cookie = web.cookies["linnaeus"]
        assert "geheim" not in cookie
        assert "tiny" in web.get("/").text


def test_a_server_of_this_machine_answers_to_no_other_name(classifier: Classifier):
    with client(classifier, hosts=frozenset({"flowers.example"})) as web:
        for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "flowers.example:80", "FLOWERS.example", "127.9.9.9"):
            assert web.get("/health", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example", "localhost.evil.example:80", "", "10.0.0.1"):
            answer = web.get("/health", headers={"Host": host})
            assert answer.status_code == 421, host
            assert "--allow-host" in error(answer)


def test_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "[::1]", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.com", "")))


@pytest.mark.parametrize("path", ["/", "/page.css", "/model", "/nowhere", "/docs", "/report"])
def test_every_answer_has_the_security_headers(web: Client, path: str):
    headers = web.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


def test_a_failure_of_ours_is_one_line_too(classifier: Classifier, monkeypatch: pytest.MonkeyPatch):
    with client(classifier) as web:

        def broken(images: np.ndarray) -> np.ndarray:
            raise RuntimeError("secret")

        monkeypatch.setattr(web.service.batcher, "_answer", broken)
        answer = web.post("/predict", content=png(), headers=OCTETS)
        assert answer.status_code == 500
        assert "secret" not in error(answer)
        assert "default-src" in answer.headers["content-security-policy"]
        monkeypatch.undo()
        assert web.post("/predict", content=png(), headers=OCTETS).status_code == 200, "the next batch goes on"


def test_the_report_runs_its_own_script_and_nothing_else(classifier: Classifier):
    report = "<html><script>let a = 1</script>"
    with client(classifier, report=report) as web:
        answer = web.get("/report")
        assert answer.text == report
        policy = answer.headers["content-security-policy"]
        assert "sandbox allow-scripts" in policy
        assert policy.count("sha256-") == 1
    with client(classifier) as web:
        assert web.get("/report").status_code == 404


def test_the_page_is_light_and_needs_nothing_from_elsewhere(web: Client):
    page = web.get("/")
    parts = [page.text] + [
        web.get(path).text
        for path in ("/page.css", "/page.js", "/i18n.js", "/requests.js", "/answers.js", "/table.js", "/icon.svg")
    ]
    assert sum(len(each.encode()) for each in parts) < 100_000
    for each in parts:
        assert "//" not in each.replace("http://www.w3.org/2000/svg", "").replace("// ", "")
        assert "innerHTML" not in each
    tag = web.get("/page.js").headers["etag"]
    assert web.get("/page.js", headers={"If-None-Match": tag}).status_code == 304


@pytest.mark.parametrize(
    ("accepted", "language"),
    [("", "en"), ("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("en-US,zh;q=0.9", "en"), ("fr, zh-TW;q=0.3", "zh"), ("fr", "en"),
     ("zh;q=0", "en"), ("en;q=0.5, zh;q=0.7", "zh"), (";;;,zh;q=9", "en"), ("," * 5000 + "zh", "en")],
)  # fmt: skip
def test_the_page_speaks_what_the_browser_asks_for(web: Client, accepted: str, language: str):
    assert choose_language(accepted) == language
    page = web.get("/", headers={"Accept-Language": accepted})
    assert page.headers["content-language"] == language
    assert words()[language]["drop"] in page.text.partition("<main>")[2]


def test_both_languages_have_the_same_words():
    english, chinese = words()["en"], words()["zh"]
    assert list(english) == list(chinese)
    for key, text in english.items():
        assert set(_slots(text)) == set(_slots(chinese[key])), key


def _slots(text: str) -> list[str]:
    return [each.partition("}")[0] for each in text.split("{")[1:]]
