"""Access control of `linnaeus serve`: token, host names, security headers, and what a browser loads."""

from __future__ import annotations

import re

import numpy as np
import pytest
from served import OCTETS, Client, client, error, png

from linnaeus.inference.classifier import Classifier
from linnaeus.serve.access import is_loopback
from linnaeus.serve.pages import FOLDER, choose_language, translations


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predict"),
        ("GET", "/model"),
        ("GET", "/metrics"),
        ("GET", "/report"),
        ("GET", "/examples.json"),
        ("POST", "/login"),
        ("GET", "/unknown"),
    ],
)
def test_the_token_protects_everything_about_the_model(classifier: Classifier, method: str, path: str):
    with client(classifier, token="geheim", report="<p>report") as web:
        for headers, message in (
            ({}, "a token is required: "),
            ({"Authorization": "Bearer gehei"}, "invalid token"),
            ({"Authorization": "Basic geheim"}, "must be sent as Authorization: Bearer"),
            ({"Cookie": "linnaeus=geheim"}, "invalid token"),
            ({"Cookie": "other=geheim"}, "a token is required: "),
        ):
            response = web.request(method, path, headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert message in error(response)


def test_the_token_opens_the_api_and_the_cookie_opens_links(classifier: Classifier):
    with client(classifier, token="geheim", report="<p>report") as web:
        bearer = {"Authorization": "Bearer geheim"}
        assert web.get("/model", headers=bearer).status_code == 200
        assert web.post("/predict", content=png(), headers={**OCTETS, **bearer}).status_code == 200
        for path in ("/", "/page.js", "/health", "/ready", "/docs", "/openapi.json"):
            assert web.get(path).status_code == 200, path
            assert "tiny" not in web.get(path).text, "public pages do not contain the name of the model"
        assert web.post("/login", headers=bearer).status_code == 204
        assert web.get("/report").status_code == 200, "authorized by the cookie"
        cookie = web.cookies["linnaeus"]
        assert "geheim" not in cookie
        assert "tiny" in web.get("/").text


def test_a_local_server_rejects_other_host_names(classifier: Classifier):
    with client(classifier, hosts=frozenset({"flowers.example"})) as web:
        for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "flowers.example:80", "FLOWERS.example", "127.9.9.9"):
            assert web.get("/health", headers={"Host": host}).status_code == 200, host
        for host in ("evil.example", "localhost.evil.example:80", "", "10.0.0.1"):
            response = web.get("/health", headers={"Host": host})
            assert response.status_code == 421, host
            assert "--allow-host" in error(response)


def test_loopback_addresses():
    assert all(map(is_loopback, ("127.0.0.1", "localhost", "::1", "[::1]", "127.1.2.3")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "example.com", "")))


@pytest.mark.parametrize("path", ["/", "/page.css", "/model", "/unknown", "/docs", "/report"])
def test_every_response_has_the_security_headers(web: Client, path: str):
    headers = web.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "server" not in headers


def test_an_internal_error_is_one_line_without_details(classifier: Classifier, monkeypatch: pytest.MonkeyPatch):
    with client(classifier) as web:

        def broken(images: np.ndarray) -> np.ndarray:
            raise RuntimeError("secret")

        monkeypatch.setattr(web.service.batcher, "_predict", broken)
        response = web.post("/predict", content=png(), headers=OCTETS)
        assert response.status_code == 500
        assert "secret" not in error(response)
        assert "default-src" in response.headers["content-security-policy"]
        monkeypatch.undo()
        assert web.post("/predict", content=png(), headers=OCTETS).status_code == 200, "the next batch is answered"


def test_the_report_can_run_its_own_script_only(classifier: Classifier):
    report = "<html><script>let a = 1</script>"
    with client(classifier, report=report) as web:
        response = web.get("/report")
        assert response.text == report
        policy = response.headers["content-security-policy"]
        assert "sandbox allow-scripts" in policy
        assert policy.count("sha256-") == 1
    with client(classifier) as web:
        assert web.get("/report").status_code == 404


def test_the_page_is_small_and_loads_nothing_from_elsewhere(web: Client):
    paths = ("/", "/page.css", "/page.js", "/i18n.js", "/requests.js", "/answers.js", "/table.js", "/icon.svg")
    texts = [web.get(path).text for path in paths]
    assert sum(len(text.encode()) for text in texts) < 100_000
    for text in texts:
        allowed = ("http://www.w3.org/2000/svg", "http://localhost:8000", "// ")  # the second is in an advice
        assert "//" not in re.sub("|".join(allowed), "", text)
        assert "innerHTML" not in text
    tag = web.get("/page.js").headers["etag"]
    assert web.get("/page.js", headers={"If-None-Match": tag}).status_code == 304


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", "en"),
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("en-US,zh;q=0.9", "en"),
        ("fr, zh-TW;q=0.3", "zh"),
        ("fr", "en"),
        ("zh;q=0", "en"),
        ("en;q=0.5, zh;q=0.7", "zh"),
        (";;;,zh;q=9", "en"),
        ("," * 5000 + "zh", "en"),
    ],
)
def test_the_page_is_in_the_language_that_the_browser_prefers(web: Client, header: str, language: str):
    assert choose_language(header) == language
    page = web.get("/", headers={"Accept-Language": header})
    assert page.headers["content-language"] == language
    assert translations()[language]["drop"] in page.text.partition("<main>")[2]


def test_both_languages_have_the_same_keys_and_placeholders():
    english, chinese = translations()["en"], translations()["zh"]
    assert list(english) == list(chinese)
    for key, text in english.items():
        assert set(re.findall(r"\{(\w+)\}", text)) == set(re.findall(r"\{(\w+)\}", chinese[key])), key


def test_translations_and_page_have_the_same_keys():
    """Of the server's page, and of the one without a server (`export --to web`), which shares them."""
    files = [*FOLDER.glob("*.js"), *FOLDER.parents[1].joinpath("web").rglob("*.js"), FOLDER / "page.html.j2"]
    sources = "".join(file.read_text(encoding="utf-8") for file in files)
    keys = set(translations()["en"])
    used = r'(?:\bt\(|data-t=|\{\{ t\()"(\w+)"'
    assert set(re.findall(used, sources)) <= keys
    names_of_splits = {"train", "valid", "test"}
    mentioned = {a or b for a, b in re.findall(r"""["'](\w+)["']|texts\.(\w+)""", sources)}
    assert keys - mentioned <= names_of_splits


CROSS = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors", "Origin": "https://evil.example"}
LINK = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}


@pytest.mark.parametrize(
    ("method", "path", "headers", "accepted"),
    [
        ("POST", "/predict", {}, True),
        ("POST", "/predict", {"Sec-Fetch-Site": "same-origin", "Origin": "https://proxied.example"}, True),
        ("POST", "/predict", {"Sec-Fetch-Site": "none"}, True),
        ("POST", "/predict", {"Origin": "http://testserver"}, True),
        ("POST", "/predict", {"Origin": "https://testserver", "Host": "testserver:443"}, True),
        ("POST", "/predict", CROSS, False),
        ("POST", "/predict", {"Sec-Fetch-Site": "same-site"}, False),
        ("POST", "/predict", {"Origin": "http://testserver:81"}, False),
        ("POST", "/predict", {"Origin": "null"}, False),
        ("POST", "/predict", {"Origin": "http://["}, False),
        ("POST", "/predict", {**LINK, "Origin": "null"}, False),
        ("POST", "/login", CROSS, False),
        ("GET", "/model", CROSS, False),
        ("GET", "/docs", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, False),
        ("OPTIONS", "/predict", {**CROSS, "Access-Control-Request-Method": "POST"}, False),
        ("GET", "/", LINK, True),
    ],
)
def test_pages_of_other_origins_cannot_make_the_server_work(
    web: Client, method: str, path: str, headers: dict[str, str], accepted: bool
):
    response = web.request(method, path, content=png() if method == "POST" else None, headers={**OCTETS, **headers})
    if accepted:
        assert response.status_code == 200
    else:
        assert response.status_code == 403
        assert "--allow-origin" in error(response)


def test_allowed_origins_can_use_the_api_from_a_browser(classifier: Classifier):
    page = {**CROSS, "Origin": "https://Shop.example"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    with client(classifier, origins=frozenset({"https://shop.example"}), token="geheim") as web:
        own = {**CROSS, "Origin": "https://shop.example"}
        preflight = web.options("/predict", headers={**own, **asks})
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://shop.example"
        bearer = {**OCTETS, "Authorization": "Bearer geheim"}
        response = web.post("/predict", content=png(), headers={**own, **bearer})
        assert (response.status_code, response.headers["access-control-allow-origin"]) == (200, own["Origin"])
        assert web.post("/predict", content=png(), headers={**own, **OCTETS}).status_code == 401
        assert web.post("/predict", content=png(), headers={**CROSS, **bearer}).status_code == 403
        assert web.post("/predict", content=png(), headers={**page, **bearer}).status_code == 200
    with client(classifier, origins=frozenset({"*"})) as web:
        assert web.post("/predict", content=png(), headers={**CROSS, **OCTETS}).status_code == 200
