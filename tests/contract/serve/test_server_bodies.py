"""Bodies and connections that nobody should send: each is refused early, by name, and the server goes on."""

from __future__ import annotations

import gzip
import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest

from tests.contract.serve.live_server import LiveServer

PATH = "/v1/embeddings"
BODY = {"model": "embedding", "input": "hi"}
JSON = {"content-type": "application/json"}
MAX_BODY_BYTES = 100_000


@pytest.fixture(scope="module")
def small() -> Iterator[LiveServer]:
    """A server that reads little."""
    with LiveServer(max_body_bytes=MAX_BODY_BYTES, keep_alive_s=1, max_connections=20) as live:
        yield live


@pytest.fixture(scope="module")
def impatient() -> Iterator[LiveServer]:
    """A server that waits for no client; what is sent to it whole comes in time."""
    with LiveServer(body_timeout_s=0.3, write_timeout_s=0.3, keep_alive_s=10) as live:
        yield live


def refusal(client: httpx.Client, content: bytes, headers: dict[str, str] = JSON) -> tuple[int, dict[str, Any]]:
    response = client.post(PATH, content=content, headers=headers)
    error: dict[str, Any] = response.json()["error"]
    return response.status_code, error


@pytest.mark.parametrize(
    ("content", "message", "param"),
    [
        (b"", "the body is empty; send a JSON object", None),
        (b"  \n", "the body is empty; send a JSON object", None),
        (b"{", "the body is no valid JSON: Input data was truncated", None),
        (b'{"model": "embedding", "input": hi}', "invalid character (byte 32)", None),
        (b'{"model": "embedding", "input": "hi"} {}', "trailing characters (byte 39)", None),
        (b"[]", "the body: expected `object`, got `array`", None),
        (b"null", "the body: expected `object`, got `null`", None),
        (b'"text"', "the body: expected `object`, got `str`", None),
        (b"\xef\xbb\xbf{}", "invalid character (byte 0)", None),
        (b'{"model": "embedding", "input": NaN}', "invalid character", None),
        (b'{"input": "hi"}', "'model' is missing", "model"),
        (b'{"model": "embedding", "inputs": "hi"}', "'inputs' is not a field that is known here", "inputs"),
        (b'{"model": 7, "input": "hi"}', "model: expected `str`, got `int`", "model"),
        (
            b'{"model": "embedding", "input": ["a", null]}',
            "input[1]: expected `int | str | array`, got `null`",
            "input[1]",
        ),
        (b'{"model": "embedding", "input": "a", "dimensions": 1e999}', "dimensions: ", "dimensions"),
        (b'{"model": "embedding", "input": "a", "dimensions": 8.5}', "dimensions: expected `int", "dimensions"),
        (b'{"model": "embedding", "input": "\xff"}', "the body is not UTF-8", None),
        (b'{"model": "embedding", "input": "\xed\xa0\x80"}', "the body is not UTF-8", None),
        (b'{"model": "embedding", "input": "\\ud800"}', "the body is no valid JSON", None),
        (b'{"model": "embedding", "input": "a", "input": "b"}', "'input' is given twice in one object", "input"),
        (b'{"model": "embedding", "input": "a", "in\\u0070ut": "b"}', "'input' is given twice in one object", "input"),
        (
            b'{"model": "embedding", "input": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
            "input[0][0]: expected",
            "input[0][0]",
        ),
        (b'{"model": "embedding", "input": 1' + b"0" * 5000 + b"}", "", "input"),
    ],
)
def test_bodies_that_are_not_sound_are_refused_with_the_place(
    client: httpx.Client, content: bytes, message: str, param: str | None
) -> None:
    status, error = refusal(client, content)
    assert status == 400
    assert message in error["message"] and error["param"] == param
    assert len(error["message"]) < 1000


@pytest.mark.parametrize("depth", [100, 500, 2000, 40_000])
def test_deep_nesting_is_refused_where_anything_may_stand(client: httpx.Client, depth: int) -> None:
    """In a field that takes any object a body of a few levels is fine, and one of many is no fault of the server's."""
    nested = b'{"a":' * depth + b"1" + b"}" * depth
    content = (
        b'{"model":"scripted","messages":[{"role":"user","content":"say hi"}],"chat_template_kwargs":' + nested + b"}"
    )
    response = client.post("/v1/chat/completions", content=content, headers=JSON)
    assert response.status_code == 400
    if depth >= 2000:
        assert response.json()["error"]["message"] == "the body is nested too deeply; make it flatter"


@pytest.mark.parametrize("filler", [b"[]", b"{}", b'{"a":[]}', b"[[]]"])
def test_a_multitude_of_lists_and_objects_is_refused(client: httpx.Client, filler: bytes) -> None:
    content = b'{"model":"scripted","messages":[],"metadata":{"a":[' + b",".join([filler] * 60_000) + b"]}}"
    response = client.post("/v1/chat/completions", content=content, headers=JSON)
    assert response.status_code == 400
    assert "lists and objects; at most 50000 are read" in response.json()["error"]["message"]


def test_brackets_in_texts_are_no_lists(client: httpx.Client) -> None:
    text = '[{"a\\": "[{' * 10_000
    response = client.post("/detokenize", json={"model": "scripted", "tokens": [0], "more": text})
    assert response.json()["error"]["param"] == "more"


def test_large_bodies_share_a_bound_and_small_ones_go_on() -> None:
    with LiveServer(max_body_bytes=500_000, max_total_body_bytes=600_000, keep_alive_s=1) as live:
        limits = live.app.context.limits
        head = head_of(PATH, "content-length: 450000")
        with live.connect() as first, live.client() as client:
            first.sendall(head + b" " * 440_000)
            while limits.num_body_bytes < 440_000 - 65_536:
                pass
            answer = live.exchange(head, b" " * 440_000)
            assert (
                answer.startswith(b"HTTP/1.1 429 ") and b"connection: close" in answer and b"retry-after: 1" in answer
            )
            assert client.post(PATH, json=BODY).status_code == 200
            large = {**BODY, "user": "x" * 150_000}
            assert client.post(PATH, json=large).status_code == 200
        while limits.num_body_bytes or limits.num_requests:
            pass


def test_slow_senders_take_no_place_from_others() -> None:
    with LiveServer(max_requests=2, keep_alive_s=1) as live, live.client() as client, ExitStack() as slow:
        for _ in range(10):
            slow.enter_context(live.connect()).sendall(head_of(PATH, "content-length: 100") + b"{")
        while live.app.context.lifecycle.num_running < 10:
            pass
        assert client.post(PATH, json=BODY).status_code == 200


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ('Application/JSON; Charset="UTF-8"', 200),
        ("application/vnd.api+json", 200),
        ("application/json; charset=utf-16", 415),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/msgpack", 415),
        ("", 415),
    ],
)
def test_only_json_is_read(client: httpx.Client, content_type: str, status: int) -> None:
    response = client.post(PATH, content=json.dumps(BODY), headers={"content-type": content_type})
    assert response.status_code == status
    if status == 415:
        assert response.json()["error"]["code"] == "unsupported_content_type"


def test_a_body_without_a_type_is_taken_for_json(client: httpx.Client) -> None:
    assert client.post(PATH, content=json.dumps(BODY)).status_code == 200


def test_compressed_bodies_are_refused_unread(client: httpx.Client) -> None:
    bomb = gzip.compress(b" " * 10**7)
    for encoding in ("gzip", "br", "deflate", "gzip, gzip", "zstd"):
        status, error = refusal(client, bomb, {**JSON, "content-encoding": encoding})
        assert status == 415 and encoding in error["message"]
    assert client.post(PATH, json=BODY, headers={"content-encoding": "identity"}).status_code == 200


def head_of(path: str, *lines: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "host: localhost", *JSON_LINES, *lines, "", ""]).encode()


JSON_LINES = ("content-type: application/json",)


def test_a_declared_size_beyond_the_bound_is_refused_before_the_body_is_sent(small: LiveServer) -> None:
    for size in (MAX_BODY_BYTES + 1, 10**9, 10**18):
        answer = small.exchange(head_of(PATH, f"content-length: {size}"))
        assert answer.startswith(b"HTTP/1.1 413 ") and b"connection: close" in answer
        assert f"larger than {MAX_BODY_BYTES} bytes".encode() in answer
        assert b'"code":"body_too_large"' in answer
    answer = small.exchange(head_of(PATH, f"content-length: {10**9}", "expect: 100-continue"))
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_body_in_pieces_is_refused_once_it_is_beyond_the_bound(small: LiveServer) -> None:
    piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
    answer = small.exchange(head_of(PATH, "transfer-encoding: chunked"), *[piece] * 1000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413 ")  # it may be closed while the client is still sending
    answer = small.exchange(head_of(PATH, "transfer-encoding: chunked"), piece, piece)
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_body_at_the_bound_is_read(small: LiveServer) -> None:
    with small.client() as client:
        content = json.dumps(BODY).encode()
        content += b" " * (MAX_BODY_BYTES - len(content))
        assert client.post(PATH, content=content, headers=JSON).status_code == 200


def test_a_body_that_does_not_come_is_given_up(impatient: LiveServer) -> None:
    answer = impatient.exchange(head_of(PATH, "content-length: 100") + b'{"model":')
    assert answer.startswith(b"HTTP/1.1 408 ") and b"did not arrive within 0.3 s" in answer


@pytest.mark.parametrize("start", [b"GET /health/live HTTP/1.1\r\nhost: loc", b"\r\n", b"G", b"GET / HTTP/1.1\r\n"])
def test_a_head_that_does_not_come_is_given_up(impatient: LiveServer, start: bytes) -> None:
    assert impatient.exchange(start) == b""
    with impatient.connect() as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert connection.recv(2**16).startswith(b"HTTP/1.1 200 ")
        connection.sendall(start)  # the second head of a connection as the first
        assert connection.recv(2**16) == b""


def test_a_connection_that_says_nothing_is_closed(small: LiveServer) -> None:
    assert small.exchange() == b""


def test_a_head_without_end_is_refused(small: LiveServer) -> None:
    answer = small.exchange(b"GET / HTTP/1.1\r\nhost: localhost\r\n", *[b"x-filler: " + b"y" * 8000 + b"\r\n"] * 50)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    answer = small.exchange(b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * 70_000)
    assert answer.startswith(b"HTTP/1.1 431 ") and b"the head of the request is larger" in answer


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS greeting
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"FLY / HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET  HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nho st: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: a\x00b\r\n\r\n",
        b"GET http://[ HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
        head_of(PATH, "content-length: 5", "content-length: 6") + b"{}",
        head_of(PATH, "content-length: -5") + b"{}",
        head_of(PATH, "content-length: 5", "transfer-encoding: chunked") + b"0\r\n\r\n",
        head_of(PATH, "transfer-encoding: chunked, identity", "connection: close") + b"0\r\n\r\n",
        head_of(PATH, "transfer-encoding: chunked") + b"zz\r\n",
        head_of(PATH, "transfer-encoding: chunked") + b"ffffffffffffffffff\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    ],
)
def test_what_is_no_sound_http_is_refused_and_does_no_harm(small: LiveServer, data: bytes) -> None:
    answer = small.exchange(data)
    assert answer == b"" or answer.split(b" ", 2)[1][:1] == b"4", answer
    with small.client() as client:
        assert client.post(PATH, json=BODY).status_code == 200


def test_a_refused_connection_says_so_in_json(small: LiveServer) -> None:
    head, _, content = small.exchange(b"nonsense\r\n\r\n").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request") and b"connection: close" in head
    assert json.loads(content)["error"]["type"] == "invalid_request_error"


def test_requests_in_one_connection_are_answered_in_their_order(small: LiveServer) -> None:
    request = b"GET /v1/models/scripted HTTP/1.1\r\nhost: localhost\r\n\r\n"
    last = b"GET /version HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    answer = small.exchange(request * 10 + last)
    assert answer.count(b"HTTP/1.1 200 ") == 11
    assert answer.rstrip().endswith(b'{"version":"' + small.exchange(last).rpartition(b'{"version":"')[2])


def test_connections_beyond_the_bound_are_closed_at_once_and_the_others_go_on(small: LiveServer) -> None:
    held = [small.connect() for _ in range(20)]
    try:
        held[0].sendall(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert held[0].recv(2**16).startswith(b"HTTP/1.1 200 ")
        with suppress(ConnectionResetError), small.connect() as late:
            assert late.recv(1) == b""
    finally:
        for connection in held:
            connection.close()


def test_a_client_that_does_not_read_is_given_up(impatient: LiveServer) -> None:
    """Its answer stops being computed, which the engine shows."""
    # what accepted connections inherit: the system holds little of what clients do not read
    impatient.server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    model = impatient.model
    model.answers["endless"] = "x" * 3900
    body = {
        "model": "scripted",
        "messages": [{"role": "user", "content": "endless"}],
        "stream": True,
    }
    content = json.dumps(body).encode()
    ends = impatient.app.context.metrics.of("scripted").num_ends
    with ExitStack() as connections:
        for _ in range(3):
            connection = connections.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(impatient.server.socket.getsockname())
            connection.sendall(head_of("/v1/chat/completions", f"content-length: {len(content)}") + content)
        while ends.total() < 3:
            time.sleep(0.01)
    assert ends == {"cancelled": 3}
    while model.engine.stats().num_running:
        time.sleep(0.01)
    stats = model.engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)


def test_clients_that_reset_their_connections_do_no_harm(small: LiveServer) -> None:
    content = json.dumps(BODY).encode()
    whole = head_of(PATH, f"content-length: {len(content)}") + content
    for cut in range(0, len(whole), 7):
        connection = small.connect()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets
        connection.sendall(whole[:cut])
        connection.close()
    with small.client() as client:
        assert client.post(PATH, json=BODY).status_code == 200
