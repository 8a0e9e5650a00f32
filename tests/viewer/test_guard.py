"""Who is let in, and what never comes out: every route, every method, every path that climbs."""

from __future__ import annotations

import secrets
from typing import Any
from urllib.parse import unquote

import anyio
import pytest
from httpx import Response
from starlette.testclient import TestClient

from colocate.viewer import guard
from colocate.viewer.guard import HEADERS
from colocate.viewer.server import hosts
from tests.viewer.conftest import PORT, TOKEN, World

ADDRESS = f"http://localhost:{PORT}"
QUERY = {"x": 600, "y": 500, "scale": 1, "classes": "0,1", "score": 0}


def stranger(client: TestClient, address: str = ADDRESS) -> TestClient:
    return TestClient(client.app, address)


def addresses(client: TestClient) -> list[str]:
    """One address of each route, of a thing that is there."""
    routes: Any = client.app.app.routes  # type: ignore[attr-defined]
    paths = []
    for route in routes:
        values = {"name": "main.js", "kind": "predictions"}
        paths.append(route.path_format.format(**dict.fromkeys(route.param_convertors, 0) | values))
    assert len(paths) > 15
    return paths


@pytest.fixture(scope="module")
def answers(client: TestClient) -> dict[str, Response]:
    """What whoever has the token sees at each address."""
    return {path: client.get(path, params=QUERY) for path in addresses(client)}


def test_whoever_has_the_token_sees_everything_but_where_it_lies(answers: dict[str, Response], world: World) -> None:
    for path, answer in answers.items():
        assert answer.status_code == 200, path
        assert "static" in path or str(world.slides.parent).encode() not in answer.content


def test_nobody_else_sees_anything(client: TestClient) -> None:
    """Not even whether a thing is there."""
    asks = stranger(client)
    answers = [asks.get(path, params=QUERY) for path in [*addresses(client), "/nowhere", "/api/slides/77"]]
    for token in ("", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "ä", "x" * 10_000):
        answers.append(asks.get("/", params={"token": token}))
        if token.isascii():
            answers.append(asks.get("/", headers={"cookie": f"colocate-{PORT}={token}"}))
    for answer in answers:
        assert answer.status_code == 403, answer.url
        assert "set-cookie" not in answer.headers and TOKEN not in answer.text


def test_the_first_visit_gives_a_cookie_that_scripts_do_not_see(client: TestClient) -> None:
    asks = stranger(client)
    answer = asks.get("/", params={"token": TOKEN})
    assert answer.status_code == 200 and "<title>colocate" in answer.text and TOKEN not in answer.text
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"colocate-{PORT}={TOKEN};")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert asks.get("/api/collection").status_code == 200
    other = TestClient(client.app, ADDRESS, cookies={f"colocate-{PORT + 1}": TOKEN})  # of another viewer
    assert other.get("/").status_code == 403


def test_cookies_of_others_do_not_hide_ours(client: TestClient) -> None:
    asks = stranger(client)
    asks.headers["cookie"] = f'odd{{}}="a b; _xsrf=2|a; colocate-{PORT}={TOKEN}'
    assert asks.get("/").status_code == 200


def test_an_address_that_is_not_this_machines_is_refused(client: TestClient) -> None:
    """A page elsewhere whose name has been made to mean this machine still says its own name."""
    asked = [("evil.example", path) for path in addresses(client)]
    asked += [(host, "/") for host in (f"evil.example:{PORT}", "localhost.evil.example", "10.0.0.7", "", "[::2]")]
    for host, path in asked:
        answer = client.get(path, params=QUERY | {"token": TOKEN}, headers={"host": host})
        assert answer.status_code == 403 and "set-cookie" not in answer.headers


def test_names_of_this_machine_are_known_at_any_port(client: TestClient) -> None:
    """A tunnel (ssh -L) has a port of its own."""
    for host in ("localhost", "localhost:9000", "127.0.0.1", "LOCALHOST:8765", "[::1]:8765", "[::1]"):
        assert client.get("/", headers={"host": host}).status_code == 200, host


def test_other_machines_are_let_in_only_where_asked_for() -> None:
    assert set(hosts("127.0.0.1")) == set(hosts("localhost")) == {"localhost", "127.0.0.1", "::1"}
    assert "192.168.3.4" in hosts("192.168.3.4")


def test_the_token_is_compared_in_constant_time(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def spy(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return secrets.compare_digest(one, other)

    monkeypatch.setattr(guard, "secrets", type("spying", (), {"compare_digest": staticmethod(spy)}))
    stranger(client).get("/", params={"token": "wrong"})
    client.get("/")
    assert (b"wrong", TOKEN.encode()) in compared and (TOKEN.encode(), TOKEN.encode()) in compared


def test_nothing_can_be_changed(client: TestClient) -> None:
    for path in addresses(client):
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
            assert client.request(method, path).status_code == 405, path
        assert stranger(client).post(path).status_code == 403, path


CLIMBING = [
    "/static/../server.py",
    "/static/..%2fserver.py",
    "/static/%2e%2e/server.py",
    "/static/%2e%2e%2fserver.py",
    "/static/%252e%252e%252fserver.py",
    "/static/..%5cserver.py",
    "/static//etc/passwd",
    "/static/%2fetc%2fpasswd",
    "/static/",
    "/static/nothing.js",
    "/static/main.js%00",
    "//etc/passwd",
    "/etc/passwd",
    "/%2e%2e/%2e%2e/etc/passwd",
    "/api/slides/..%2f..%2fetc%2fpasswd/thumbnail",
    "/api/slides/%2fetc%2fpasswd/thumbnail",
    "/api/slides/0/../../collection",
]
ABSENT = [
    "/api/slides/1",
    "/api/slides/-1",
    "/api/slides/0.5",
    "/api/slides/99999999999999999999999999",
    "/api/slides/1/thumbnail",
    "/api/slides/0/pixels/99/0_0",
    "/api/slides/0/pixels/0/0_1",
    "/api/slides/0/pixels/0/99999999999999999999_0",
    "/api/slides/0/pixels/0/-1_0",
    "/api/slides/0/tissue/0/5_5",
    "/api/slides/0/predictions/1",
    "/api/slides/0/features/0",
    "/api/slides/0/nothing/0",
    "/api/slides/0/similar/1",
    "/api/slides/0/similar/0/999999/0/0_0",
    "/api/runs/1",
    "/api/runs/0/tiles/20",
    "/api/runs/0/tiles/0/99",
    "/api/runs/0/tiles/0/0/picture/3",
    "/api/runs/0/tiles/0/0/cell/2/0",
    "/api/runs/0/tiles/0/0/cell/0/9999",
]


def raw(client: TestClient, path: str) -> tuple[int, bytes]:
    """Ask for a path as it is written: clients tidy it up before they send it."""
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": b"x=1&y=1&scale=1&score=0&classes=0",
        "headers": [(b"host", b"localhost"), (b"cookie", f"colocate-{PORT}={TOKEN}".encode())],
        "server": ("localhost", PORT),
        "client": ("127.0.0.1", 1),
        "root_path": "",
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(dict(message))

    app: Any = client.app
    anyio.run(app, scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


def test_what_is_not_there_is_404_and_no_file_comes_out(client: TestClient, world: World) -> None:
    for path in CLIMBING + ABSENT:
        status, body = raw(client, path)
        assert status == 404, path
        assert b"root:" not in body and b"import" not in body and str(world.slides.parent).encode() not in body


def test_questions_without_a_place_are_refused(client: TestClient) -> None:
    for query in ("", "x=1", "x=nan&y=1&scale=1&score=0", "x=1&y=inf&scale=1&score=0", "x=a&y=b"):
        for path in ("/api/slides/0/predictions/0/at", "/api/slides/0/similar/0/at"):
            assert client.get(f"{path}?{query}").status_code == 400, query


def test_every_answer_binds_the_page_to_this_server(client: TestClient, answers: dict[str, Response]) -> None:
    others = [client.get("/nowhere"), client.post("/"), stranger(client).get("/")]
    for answer in [*answers.values(), *others]:
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy and "*" not in policy
