"""The gate that every request passes: keys, hosts, origins, paths and methods, and what becomes of errors."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from subsecond.core.errors import InputError
from subsecond.serve.auth import ApiKeys, check_reach, parse_keys, read_keys
from subsecond.serve.settings import ServeSettings
from tests.contract.serve.live_server import LiveServer
from tests.contract.serve.scripted_model import ScriptedModel

ALICE, BOB = "alice-key-0123456789", "bob-key-0123456789abc"
KEYS = f"# people\nalice {ALICE}\n\nbob sha256:{hashlib.sha256(BOB.encode()).hexdigest()}\n"
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "say hi"}]}


@pytest.fixture(scope="module")
def locked() -> Iterator[LiveServer]:
    with LiveServer(keys=KEYS, allowed_origins=("https://app.example",), allowed_hosts=("Server.example",)) as live:
        yield live


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def every_path(live: LiveServer) -> list[tuple[str, str]]:
    return [(route.method, route.path.replace("{model:path}", "scripted")) for route in live.app.table.routes]


def test_every_route_but_health_needs_a_key(locked: LiveServer) -> None:
    paths = every_path(locked)
    assert len(paths) >= 15
    with locked.client() as client:
        for method, path in [*paths, ("GET", "/nothing"), ("PATCH", "/v1/models"), ("GET", "/health/other")]:
            response = client.request(method, path, json={} if method == "POST" else None)
            if path in ("/health/live", "/health/ready"):
                assert response.status_code == 200, path
            else:
                assert response.status_code == 401, path
                assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        bearer(ALICE[:-1]),
        bearer(ALICE + "x"),
        {"authorization": f"Basic {ALICE}"},
        {"authorization": ALICE},
        {"x-api-key": ""},
        {"x-api-key": BOB[:-1]},
        {"x-api-key": hashlib.sha256(BOB.encode()).hexdigest()},
        {"x-api-key": f"sha256:{hashlib.sha256(BOB.encode()).hexdigest()}"},
        {"x-api-key": "wrong-key-0123456789", **bearer(ALICE)},
        {"api-key": ALICE},
        {"cookie": f"key={ALICE}"},
    ],
)
def test_wrong_keys_are_refused(locked: LiveServer, headers: dict[str, str]) -> None:
    with locked.client() as client:
        response = client.get("/v1/models", headers=headers)
        assert response.status_code == 401
        error = response.json()["error"]
        assert error["code"] == "invalid_api_key" and "key" in error["message"]
        assert ALICE not in response.text and BOB not in response.text


@pytest.mark.parametrize(
    "headers", [bearer(ALICE), {"authorization": f"bearer  {BOB}"}, {"x-api-key": ALICE}, {"X-Api-Key": BOB}]
)
def test_keys_are_accepted_in_both_headers(locked: LiveServer, headers: dict[str, str]) -> None:
    with locked.client() as client:
        assert client.get("/v1/models", headers=headers).status_code == 200


def test_each_key_is_a_tenant_whose_cached_blocks_are_its_own(locked: LiveServer) -> None:
    body = {**CHAT, "messages": [{"role": "user", "content": "say a rather long text to be cached, alone"}]}
    with locked.client() as client:
        for key in (ALICE, BOB):
            for is_first in (True, False):
                usage = client.post("/v1/chat/completions", json=body, headers=bearer(key)).json()["usage"]
                assert (usage["prompt_tokens_details"]["cached_tokens"] == 0) is is_first
    assert {request.salt for request in locked.model.engine.requests} == {"alice", "bob"}


@pytest.mark.parametrize(
    "path",
    [
        "/health/live/../../v1/models",
        "/health/live/..%2f..%2fv1/models",
        "/health%2flive/../v1/models",
        "/health/live/",
        "/health/live;/v1/models",
        "/health/live%00",
        "//health/live",
        "/HEALTH/LIVE",
        "//v1/models",
        "/v1/models#/health/live",
        "/v1/models?/health/live",
        "/v1/models%3f/health/live",
        "http://127.0.0.1/v1/models",
        "http://health/v1/models",
        "http://x/health/live/../../v1/models",
        "*",
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1/health/live?", "localhost#", "health"])
def test_no_spelling_of_path_and_host_goes_around_the_keys(locked: LiveServer, path: str, host: str) -> None:
    answer = locked.exchange(f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
    status = int(answer.split(b" ", 2)[1])
    assert status in (400, 401, 403), answer
    assert b"scripted" not in answer


@pytest.mark.parametrize("header", ["authorization: Bearer ", "authorization: bearer", "x-api-key: \t", "x-api-key:"])
def test_empty_keys_are_refused(locked: LiveServer, header: str) -> None:
    request = f"GET /v1/models HTTP/1.1\r\nhost: localhost\r\n{header}\r\nconnection: close\r\n\r\n"
    assert locked.exchange(request.encode()).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    ("host", "is_answered"),
    [
        ("localhost", True),
        ("LOCALHOST:8000", True),
        ("127.0.0.1:1", True),
        ("[::1]:8000", True),
        ("server.example", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
    ],
)
def test_only_known_hosts_are_answered(locked: LiveServer, host: str, is_answered: bool) -> None:
    with locked.client(headers=bearer(ALICE)) as client:
        response = client.get("/v1/models", headers={"host": host})
        assert response.status_code == (200 if is_answered else 403)
        if not is_answered:
            assert "--allowed-hosts" in response.json()["error"]["message"]
        assert client.get("/health/live", headers={"host": host}).status_code == 200


def test_pages_of_other_origins_may_not_call(locked: LiveServer) -> None:
    with locked.client(headers=bearer(ALICE)) as client:
        for origin in ("https://evil.example", "null", "https://app.example.evil.example", "http://app.example"):
            response = client.post("/v1/chat/completions", json=CHAT, headers={"origin": origin})
            assert response.status_code == 403
            assert "--allowed-origins" in response.json()["error"]["message"]
            assert "access-control-allow-origin" not in response.headers


def test_pages_of_an_allowed_origin_may(locked: LiveServer) -> None:
    origin = {"origin": "https://app.example"}
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}
    with locked.client() as client:
        preflight = client.options("/v1/chat/completions", headers={**origin, **asks})
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        assert preflight.headers["access-control-allow-headers"] == "authorization, content-type"
        response = client.post("/v1/chat/completions", json=CHAT, headers={**origin, **bearer(ALICE)})
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "https://app.example"
        assert client.post("/v1/chat/completions", json=CHAT, headers=origin).status_code == 401
        assert client.options("/v1/chat/completions", headers=asks).status_code == 401


def test_sharing_with_other_origins_is_off_without_a_setting(client: httpx.Client) -> None:
    response = client.get("/v1/models")
    assert not any(name.startswith("access-control") for name in response.headers)
    headers = {"origin": "https://a.example", "access-control-request-method": "POST"}
    assert client.options("/v1/models", headers=headers).status_code == 403


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alice short", r"the test, line 1 has a key of 5 characters, which could be guessed; give at least 16"),
        ("a b c", r"line 1 has 3 words"),
        ("\n\nal/ice 0123456789abcdef", r"line 3 has a name that is not allowed"),
        ("\n".join(f"key-0123456789-{number}" for number in range(1001)), r"the test has 1001 keys; give at most 1000"),
    ],
)
def test_key_lines_that_are_not_sound_are_refused_without_showing_them(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_keys(text, "the test")
    assert "0123456789" not in str(caught.value)


def test_keys_come_from_a_file_and_the_environment(tmp_path: Any) -> None:
    path = tmp_path / "keys"
    path.write_text(KEYS)
    keys = read_keys(str(path), "carol carol-key-0123456789,dora-key-01234567890")
    tenants = [keys.tenant(httpx_headers(key)) for key in (ALICE, BOB, "carol-key-0123456789")]
    assert tenants == ["alice", "bob", "carol"]
    digest = hashlib.sha256(b"dora-key-01234567890").hexdigest()
    assert keys.tenant(httpx_headers("dora-key-01234567890")) == f"key-{digest[:8]}"
    assert ALICE not in repr(keys.__dict__)
    path.write_text("# nothing\n")
    with pytest.raises(InputError, match="has no key"):
        read_keys(str(path), None)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_keys(str(path), None)
    with pytest.raises(InputError, match="cannot read the key file"):
        read_keys(str(tmp_path / "none"), None)


def httpx_headers(key: str) -> Any:
    from starlette.datastructures import Headers

    return Headers(bearer(key))


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("localhost.example", False),
    ],
)
def test_other_machines_need_a_key(host: str, is_local: bool) -> None:
    settings = ServeSettings(host=host)
    check_reach(settings, ApiKeys(parse_keys(KEYS, "the test")))
    if is_local:
        check_reach(settings, ApiKeys())
    else:
        with pytest.raises(InputError, match=r"lets other machines connect, which needs API keys: .*--api-key-file"):
            check_reach(settings, ApiKeys())


def test_a_server_that_others_reach_does_not_start_without_a_key() -> None:
    with pytest.raises(InputError, match="needs API keys"):
        LiveServer(host="0.0.0.0")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            "/v1/nothing",
            {"error": {"message": "", "type": "invalid_request_error", "param": None, "code": "not_found"}},
        ),
        ("/v1/messages/nothing", {"type": "error", "error": {"type": "not_found_error", "message": ""}}),
        ("/api/nothing", {"error": ""}),
        (
            "/v1/models/",
            {"error": {"message": "", "type": "invalid_request_error", "param": None, "code": "model_not_found"}},
        ),
    ],
)
def test_unknown_paths_are_told_in_the_form_of_their_api(client: httpx.Client, path: str, expected: Any) -> None:
    response = client.get(path)
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/json"
    told = response.json()
    assert shape(told) == shape(expected)
    if "not_found" in str(expected) and path != "/v1/models/":
        assert "/openapi.json" in response.text


def shape(value: Any) -> Any:
    """The value without its messages."""
    if not isinstance(value, dict):
        return value
    return {
        key: "" if key == "message" or (isinstance(item, str) and key == "error") else shape(item)
        for key, item in value.items()
    }


def test_other_methods_are_told_which_there_are(client: httpx.Client) -> None:
    response = client.get("/v1/embeddings")
    assert response.status_code == 405 and response.headers["allow"] == "POST"
    assert response.json()["error"]["code"] == "method_not_allowed"
    for method in ("DELETE", "PUT", "OPTIONS", "TRACE"):
        response = client.request(method, "/v1/models")
        assert response.status_code == 405 and response.headers["allow"] == "GET"


def test_head_is_answered_where_get_is(client: httpx.Client) -> None:
    response = client.head("/v1/models")
    assert response.status_code == 200 and response.content == b""
    assert client.head("/v1/embeddings").status_code == 405


def test_every_response_has_a_number_of_its_own(client: httpx.Client) -> None:
    numbers = {client.get(path).headers["x-request-id"] for path in ("/v1/models", "/nothing", "/health/live") * 3}
    assert len(numbers) == 9


def test_an_error_of_ours_is_a_500_that_tells_a_number_and_no_more(
    client: httpx.Client, scripted: ScriptedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("a secret of the prompt")

    monkeypatch.setattr(scripted, "script_for", fail)
    anthropic = {"model": "scripted", "max_tokens": 5, "messages": [{"role": "user", "content": "hi"}]}
    with caplog.at_level(logging.ERROR):
        for path, body in (("/v1/chat/completions", CHAT), ("/v1/messages", anthropic)):
            for is_streamed in (False, True):
                response = client.post(path, json={**body, "stream": is_streamed})
                assert response.status_code == 500
                number = response.headers["x-request-id"]
                assert number in response.json()["error"]["message"]
                assert "secret" not in response.text and "ZeroDivision" not in response.text
                assert any(number in record.getMessage() and record.exc_info for record in caplog.records)
    monkeypatch.undo()
    assert client.post("/v1/chat/completions", json=CHAT).json()["choices"][0]["message"]["content"] == "hi"


def test_a_failed_step_ends_its_request_alone(client: httpx.Client, scripted: ScriptedModel) -> None:
    scripted.backend.failure = RuntimeError("the kernel failed")
    response = client.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "server_error"
    assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
    assert client.get("/health/ready").status_code == 200


def test_the_access_log_tells_routes_and_no_texts(caplog: pytest.LogCaptureFixture) -> None:
    with (
        caplog.at_level(logging.INFO, "subsecond.serve.app"),
        LiveServer(access_log=True, keys=KEYS) as live,
        live.client(headers=bearer(ALICE)) as client,
    ):
        client.post("/v1/chat/completions", json=CHAT)
        client.get("/some/secret/path?with=secrets")
    lines = [record.getMessage() for record in caplog.records if record.name == "subsecond.serve.app"]
    assert len(lines) == 2
    assert " alice POST /v1/chat/completions 200 " in lines[0] and " alice GET other 404 " in lines[1]
    assert not any("secret" in line or ALICE in line for line in lines)
