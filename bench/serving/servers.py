"""The servers that are compared: how each is started, is given a load and is held while another has its turn."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import uvloop

from bench.engines import ENGINES, OURS, Row
from bench.serving import commands
from bench.serving.client import Address, Answer, check, run_streams
from bench.serving.commands import Capacity
from bench.serving.loads import Prompt, completion_body
from bench.serving.processes import MeasuredProcess
from bench.serving.samples import Costs, Sample, sample_of
from bench.timing import PeerError
from subsecond.measure.peers import free_port

Result = TypeVar("Result")

IN_PROCESS = "-engine"
"""Ends the name of our engine without HTTP: subsecond-engine, subsecond:int8-engine."""

START_TIMEOUT_S = 600.0
SAMPLE_TIMEOUT_S = 3600.0
IDLE_WINDOW_S = 0.5


class Server(Protocol):
    """Something that answers prompts, one load at a time."""

    peak_rss_bytes: int

    def start(self) -> None:
        """Load the model and wait until it is ready; PeerError if it cannot be."""

    def measure(self, prompts: Sequence[Sequence[Prompt]], num_new_tokens: int) -> Sample:
        """Answer the prompts of all streams; PeerError if one is not answered in full."""

    def pause(self) -> None:
        """Keep it from computing until `resume`."""

    def resume(self) -> None:
        """Let it go on."""

    def stop(self) -> None:
        """End it; may be called again."""


class HttpServer:
    """A program that listens on a port of this machine; `command` makes its command line from the port."""

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        ready_path: str,
        environment: Mapping[str, str] | None = None,
        api_key: str | None = None,
    ) -> None:
        self._command = command
        self._ready_path = ready_path
        self._environment = environment
        self._process: MeasuredProcess | None = None
        self._api_key = api_key
        self.address = Address(0)
        self.model_name = ""
        self.peak_rss_bytes = 0

    @property
    def process(self) -> MeasuredProcess:
        """The running program."""
        assert self._process is not None, "a server is started before it is used"
        return self._process

    def start(self) -> None:
        port = free_port()
        self.address = Address(port, api_key=self._api_key)
        self._process = MeasuredProcess(self._command(port), self._environment)
        origin = f"http://{self.address.host}:{port}"
        try:
            self._process.wait_until_ready(origin + self._ready_path, START_TIMEOUT_S)
            headers = {} if self._api_key is None else {"Authorization": f"Bearer {self._api_key}"}
            with urllib.request.urlopen(urllib.request.Request(f"{origin}/v1/models", headers=headers)) as response:
                self.model_name = json.load(response)["data"][0]["id"]
        except BaseException:
            self.stop()
            raise

    def measure(self, prompts: Sequence[Sequence[Prompt]], num_new_tokens: int) -> Sample:
        bodies = [[self.body(prompt, num_new_tokens) for prompt in stream] for stream in prompts]
        server_s, client_s = self.process.cpu_seconds(), time.process_time()
        answers = self.run(run_streams(self.address, bodies))
        client_s = time.process_time() - client_s
        server_s = self.process.cpu_seconds() - server_s
        for of_stream, stream in zip(answers, prompts, strict=True):
            for answer, prompt in zip(of_stream, stream, strict=True):
                check(answer, len(prompt), num_new_tokens)
        self.peak_rss_bytes = self.process.peak_rss_bytes()
        return sample_of(answers, Costs(server_s, client_s, idle_share(self.process)))

    def body(self, prompt: Prompt, num_new_tokens: int) -> bytes:
        """The body of a request for that many tokens."""
        return completion_body(self.model_name, prompt, num_new_tokens)

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a client to its end; PeerError with the end of the server's log if it fails."""

        async def in_time() -> Result:
            async with asyncio.timeout(SAMPLE_TIMEOUT_S):
                return await work

        try:
            return uvloop.run(in_time())
        except (PeerError, TimeoutError) as error:
            reason = str(error) or f"no answer in {SAMPLE_TIMEOUT_S:.0f} s"
            raise PeerError(f"{self.process.log_end()}\n{reason}") from None

    def pause(self) -> None:
        self.process.pause()

    def resume(self) -> None:
        self.process.resume()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()


class EngineProcess:
    """Our engine in a process of its own without HTTP, given the same loads; its readers are part of its own time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._process: MeasuredProcess | None = None
        self.peak_rss_bytes = 0

    def start(self) -> None:
        self._process = MeasuredProcess(self._command, has_pipes=True)
        self._receive()

    def measure(self, prompts: Sequence[Sequence[Prompt]], num_new_tokens: int) -> Sample:
        process = self._running
        server_s = process.cpu_seconds()
        assert process.process.stdin is not None
        process.process.stdin.write(json.dumps({"prompts": prompts, "num_new_tokens": num_new_tokens}).encode() + b"\n")
        process.process.stdin.flush()
        answers = [[Answer(**values) for values in stream] for stream in self._receive()]
        server_s = process.cpu_seconds() - server_s
        self.peak_rss_bytes = process.peak_rss_bytes()
        return sample_of(answers, Costs(server_s, 0.0, idle_share(process)))

    def pause(self) -> None:
        self._running.pause()

    def resume(self) -> None:
        self._running.resume()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    @property
    def _running(self) -> MeasuredProcess:
        assert self._process is not None, "an engine is started before it is used"
        return self._process

    def _receive(self) -> Any:
        """The next line that it prints, which is JSON."""
        process = self._running
        assert process.process.stdout is not None
        line = process.process.stdout.readline()
        if not line:
            raise process.failure()
        return json.loads(line)


def idle_share(process: MeasuredProcess) -> float:
    """Processors that a process keeps busy while nobody asks it for anything."""
    start_s, start_cpu_s = time.perf_counter(), process.cpu_seconds()
    time.sleep(IDLE_WINDOW_S)
    return (process.cpu_seconds() - start_cpu_s) / (time.perf_counter() - start_s)


def open_server(name: str, model: Path, capacity: Capacity) -> Server:
    """The server of that name, not yet started; PeerError if it cannot be had here."""
    row = Row.parse(name.removesuffix(IN_PROCESS))
    path = ENGINES[row.engine].prepare(model, row.weights)
    if name.endswith(IN_PROCESS):
        return EngineProcess(commands.our_engine(path, row.weights, capacity))
    command = partial(commands.server_command, row, path, capacity)
    command(0)  # says at once what is missing
    return HttpServer(command, commands.READY_PATHS.get(row.engine, "/health"))


def check_name(name: str) -> str:
    """Return the name of a server; ValueError with what is allowed if there is none of it."""
    row = Row.parse(name.removesuffix(IN_PROCESS))
    if row.engine not in commands.SERVED or (name.endswith(IN_PROCESS) and row.engine != OURS):
        raise ValueError(f"{name}: servers are {', '.join(commands.SERVED)} and {OURS}{IN_PROCESS}")
    return name
