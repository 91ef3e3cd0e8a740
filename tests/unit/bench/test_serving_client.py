"""The load generator against a server of a few lines, and the processes that are measured from outside."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest

from bench.models import ROOT
from bench.peers.http_front import Front, serve
from bench.serving import long_prompt
from bench.serving.client import LOCAL_HOST, Address, Answer, check, complete, run_streams
from bench.serving.loads import completion_body
from bench.serving.processes import MeasuredProcess, cpu_seconds, family_of, ticks_of
from bench.serving.servers import HttpServer
from bench.timing import PeerError
from subsecond.measure.peers import free_port

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"

Handler = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]


def event(value: object) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value)
    return b"data: " + text.encode() + b"\n\n"


def token(text: str, finish_reason: str | None = None) -> bytes:
    return event({"choices": [{"index": 0, "text": text, "finish_reason": finish_reason}]})


def usage(num_prompt: int, num_new: int, cached: int | None = None) -> bytes:
    details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
    return event({"choices": [], "usage": {"prompt_tokens": num_prompt, "completion_tokens": num_new, **details}})


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[Address]:
    """A server that reads one request a connection and lets the handler write whatever it likes."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(int(line[15:]) for line in head.decode().split("\r\n") if line.startswith("Content-Length:"))
            await handler(head + await reader.readexactly(length), writer)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, LOCAL_HOST, 0)
    async with server:
        yield Address(server.sockets[0].getsockname()[1], api_key="secret")


def answer_to(handler: Handler) -> Answer:
    async def ask() -> Answer:
        async with serving(handler) as address:
            return await complete(address, completion_body("m", (1, 2, 3), 2))

    return asyncio.run(ask())


def test_events_are_read_wherever_packets_and_chunks_end() -> None:
    events = token("a") + token("b", "length") + usage(3, 2, cached=1) + event("[DONE]")

    async def in_pieces(request: bytes, writer: asyncio.StreamWriter) -> None:
        assert request.startswith(b"POST /v1/completions HTTP/1.1\r\n")
        assert b"Authorization: Bearer secret\r\n" in request
        data = CHUNKED + b"".join(chunk(events[i : i + 7]) for i in range(0, len(events), 7)) + b"0\r\n\r\n"
        for i in range(0, len(data), 5):
            writer.write(data[i : i + 5])
            await writer.drain()

    answer = answer_to(in_pieces)
    check(answer, 3, 2)
    assert len(answer.stamps_s) == 2
    assert (answer.num_cached_tokens, answer.finish_reason) == (1, "length")
    assert answer.start_s <= answer.stamps_s[0] <= answer.stamps_s[1] <= answer.end_s
    assert len(answer.gaps_ms) == 1


def test_token_ids_are_tokens_and_a_closed_connection_may_end_the_response() -> None:
    async def ids(_: bytes, writer: asyncio.StreamWriter) -> None:
        choice = {"index": 0, "text": "", "token_ids": [5, 6], "finish_reason": "length"}
        writer.write(UNTIL_CLOSED + event({"choices": [choice]}) + usage(3, 2) + event("[DONE]"))

    answer = answer_to(ids)
    check(answer, 3, 2)
    assert len(answer.stamps_s) == 1
    assert answer.num_cached_tokens is None


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (b"HTTP/1.1 429 Too Many\r\nContent-Length: 4\r\n\r\nbusy", "status 429: busy"),
        (UNTIL_CLOSED + token("a"), "closed before the end"),
        (CHUNKED + chunk(token("a") + event("[DONE]")) + b"0\r\n\r\n", "without a finish reason"),
        (UNTIL_CLOSED + event({"error": {"message": "out of memory"}}), "out of memory"),
        (b"SSH-2.0-server\r\n", "no HTTP"),
    ],
)
def test_failures_say_what_came(response: bytes, reason: str) -> None:
    async def write(_: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(response)

    with pytest.raises(PeerError, match=reason):
        answer_to(write)


def test_nobody_listening_is_a_failure() -> None:
    with pytest.raises(PeerError, match="cannot connect"):
        asyncio.run(complete(Address(free_port()), b"{}"))


@pytest.mark.parametrize("answer", [Answer(num_prompt_tokens=3, num_new_tokens=1), Answer(0, 1, [], 3, 2)])
def test_answers_have_to_be_of_the_size_that_was_asked(answer: Answer) -> None:
    with pytest.raises(PeerError, match="tokens"):
        check(answer, 3, 2)


def test_streams_run_at_once_and_each_waits_for_its_own_answers() -> None:
    live: list[int] = []
    all_there = asyncio.Event()

    async def wait_for_all(request: bytes, writer: asyncio.StreamWriter) -> None:
        stream, turn = json.loads(request.partition(b"\r\n\r\n")[2])["prompt"]
        live.append(stream)
        assert live.count(stream) == turn + 1, "a stream sends its next request when the last one is answered"
        if len(live) == 3:
            all_there.set()
        await all_there.wait()  # a client that sent one request at a time would never get here
        writer.write(UNTIL_CLOSED + token("a", "length") + usage(2, 1, cached=10 * stream + turn) + event("[DONE]"))

    async def ask() -> list[list[Answer]]:
        async with serving(wait_for_all) as address:
            bodies = [[completion_body("m", (stream, turn), 1) for turn in range(2)] for stream in range(3)]
            return await run_streams(address, bodies)

    found = asyncio.run(ask())
    assert [[answer.num_cached_tokens for answer in stream] for stream in found] == [[0, 1], [10, 11], [20, 21]]


def test_one_failure_ends_all_streams() -> None:
    all_ended = asyncio.Event()

    async def refuse_one(request: bytes, writer: asyncio.StreamWriter) -> None:
        if json.loads(request.partition(b"\r\n\r\n")[2])["prompt"] == [7]:
            writer.write(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops")
        else:
            writer.write(UNTIL_CLOSED + token("a"))
            await all_ended.wait()

    async def ask() -> None:
        async with serving(refuse_one) as address:
            try:
                await run_streams(address, [[completion_body("m", (i,), 1)] for i in (6, 7)])
            finally:
                all_ended.set()

    with pytest.raises(PeerError, match="oops"):
        asyncio.run(ask())


class CountingPipeline:
    """Takes two steps for a prompt, and then gives each request a token a step: the number of the request."""

    def __init__(self) -> None:
        self.handles: list[CountingHandle] = []

    def add(self, prompt_ids: tuple[int, ...], num_new_tokens: int) -> CountingHandle:
        self.handles.append(CountingHandle(len(prompt_ids), num_new_tokens))
        return self.handles[-1]

    def step(self) -> None:
        for handle in self.handles:
            handle.num_steps += 1


class CountingHandle:
    def __init__(self, num_prompt_tokens: int, num_new_tokens: int) -> None:
        self.size = (num_prompt_tokens, num_new_tokens)
        self.num_steps = self.num_read = 0
        self.is_cancelled = False

    def can_read(self) -> bool:
        return min(self.num_steps - 2, self.size[1]) > self.num_read

    def read(self) -> dict[int, SimpleNamespace]:
        self.num_read += 1
        return {0: SimpleNamespace(generated_ids=[7])}

    def cancel(self) -> None:
        self.is_cancelled = True


def test_a_stepped_pipeline_is_served() -> None:
    pipeline, front = CountingPipeline(), Front(0, "m")
    server = Thread(target=serve, args=(pipeline, front, 6))
    server.start()
    with urllib.request.urlopen(f"http://{LOCAL_HOST}:{front.port}/v1/models", timeout=60) as response:
        assert json.load(response)["data"][0]["id"] == "m"
    bodies = [[completion_body("m", (1,) * 2000, 3 + i)] * 2 for i in range(3)]
    found = asyncio.run(run_streams(Address(front.port), bodies))
    server.join(60)
    for i, stream in enumerate(found):
        for answer in stream:
            check(answer, 2000, 3 + i)
            assert len(answer.stamps_s) == 3 + i
    assert sorted(handle.size for handle in pipeline.handles) == [(2000, 3 + i) for i in (0, 0, 1, 1, 2, 2)]
    assert not any(handle.is_cancelled for handle in pipeline.handles)


@pytest.mark.parametrize("change", [{"prompt": "text"}, {"ignore_eos": False}, {"stream": False}, {"prompt": None}])
def test_a_stepped_pipeline_takes_nothing_else(change: dict[str, object]) -> None:
    front = Front(0, "m")
    server = Thread(target=serve, args=(CountingPipeline(), front, 1))
    server.start()
    body = completion_body("m", (1,), 1)
    with pytest.raises(PeerError, match="status 400"):
        asyncio.run(complete(Address(front.port), json.dumps(json.loads(body) | change).encode()))
    asyncio.run(complete(Address(front.port), body))
    server.join(60)
    assert not server.is_alive()


def test_streams_beside_a_long_prompt_are_watched_and_then_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long_prompt, "STREAM_NEW_TOKENS", 10**9)
    monkeypatch.setattr(long_prompt, "SETTLING_S", 0.0)
    pipeline, front = CountingPipeline(), Front(0, "m")
    server = HttpServer(lambda port: [str(port)], "/health")
    server.address = Address(front.port)
    thread = Thread(target=serve, args=(pipeline, front, 3 + 2 + 2))
    thread.start()
    found = asyncio.run(long_prompt.LongPrompts(server, 2, 4000, quiet_s=0.2).measure(3))
    thread.join(60)
    assert not thread.is_alive(), "three streams were left, two long prompts came alone and two beside them"
    assert [handle.size for handle in pipeline.handles] == [(4000, 1)] * 2 + [(64, 10**9)] * 3 + [(4000, 1)] * 2
    assert [handle.is_cancelled for handle in pipeline.handles] == [False] * 2 + [True] * 3 + [False] * 2
    assert len(found.alone_ttft_ms) == len(found.beside_ttft_ms) == 2
    assert len(found.disturbed_gaps_ms) >= 2 * 3
    assert found.as_json()["num_streams"] == 3


def test_processor_time_is_read_behind_any_name() -> None:
    assert ticks_of("7 (a (b) c) S 1 7 7 0 -1 4194560 10 0 0 0 30 4 2 1 20 0 5 0 100 1000 10") == 37


def test_processor_time_counts_children(tmp_path: Path) -> None:
    for pid, children, ticks in ((1, "2 3", 50), (2, "4", 100), (3, "", 200), (4, "", 400), (5, "", 800)):
        task = tmp_path / str(pid) / "task" / str(pid)
        task.mkdir(parents=True)
        (task / "children").write_text(children)
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (x) S 1 7 7 0 -1 0 10 0 0 0 {ticks} 0 0 0 20 0 5 0")
    (tmp_path / "1" / "task" / "1" / "children").write_text("2 3 99")  # one that has ended meanwhile
    assert set(family_of(1, tmp_path)) == {1, 2, 3, 4, 99}
    assert cpu_seconds(1, tmp_path) == pytest.approx(750 / 100)


def test_processes_are_held_and_ended() -> None:
    port = free_port()
    process = MeasuredProcess([sys.executable, "-m", "http.server", "--bind", LOCAL_HOST, str(port)])
    url = f"http://{LOCAL_HOST}:{port}/LICENSE"
    try:
        process.wait_until_ready(url, timeout_s=60)
        assert process.cpu_seconds() > 0
        assert process.peak_rss_bytes() > 1 << 20
        process.pause()
        with pytest.raises(TimeoutError):
            urllib.request.urlopen(url, timeout=0.2)
        process.resume()
        process.wait_until_ready(url, timeout_s=60)
    finally:
        process.stop()
    assert process.process.returncode is not None
    process.stop()


def test_processes_do_not_outlive_who_measures_them() -> None:
    program = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from bench.serving.processes import MeasuredProcess
held = MeasuredProcess([sys.executable, "-c", "import time; time.sleep(600)"])
held.pause()
print(held.process.pid, flush=True)
sys.stdin.read()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        parent.kill()
    while is_running(pid):
        pass


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_process_that_ends_says_why() -> None:
    process = MeasuredProcess([sys.executable, "-c", "import sys; sys.exit('no such model')"])
    try:
        with pytest.raises(PeerError, match="no such model"):
            process.wait_until_ready(f"http://{LOCAL_HOST}:{free_port()}/", timeout_s=60)
    finally:
        process.stop()
