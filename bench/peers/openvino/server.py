"""Serves OpenVINO GenAI's pipeline over HTTP for bench.serve_load; runs in the pipeline's own environment.

Run: python -m bench.peers.openvino.server FOLDER --port N [--threads N] [--context-tokens N] [--step-tokens N]
It speaks what the load generator asks: POST /v1/completions with token ids, max_tokens, ignore_eos and stream, always
the likeliest token; GET /health and /v1/models. It is made to cost next to nothing: tokens are sent as ids and never
become text, one thread runs the pipeline, and another does all of HTTP meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import selectors
import socket
import threading
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai

HOST = "127.0.0.1"
MAX_REQUEST_BYTES = 1 << 24
KV_BLOCK_TOKENS = 32  # of the pipeline on processors
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


class Connection:
    """One client: the bytes of its request as they come, then what it is sent."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self._received = bytearray()

    def request(self) -> tuple[str, str, bytes] | None:
        """Method, path and body once all of it has come; ValueError if that will never be."""
        data = self.client.recv(1 << 16)
        self._received += data
        head, blank, rest = self._received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        length = int(fields.get("content-length", "0"))
        if not data or len(first.split(" ")) != 3 or len(self._received) > MAX_REQUEST_BYTES:
            raise ValueError("no request of HTTP/1.1, or a long one")
        if not blank or len(rest) < length:
            return None
        method, path, _ = first.split(" ")
        return method, path, bytes(rest[:length])

    def send(self, data: bytes) -> bool:
        """Whether the client still takes something."""
        try:
            self.client.sendall(data)
        except OSError:
            return False
        return True

    def send_json(self, status: str, value: object) -> None:
        """The whole answer."""
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        self.send(f"{head}Connection: close\r\n\r\n".encode() + body)
        self.client.close()

    def send_event(self, value: object) -> bool:
        """One event of a stream; whether the client still takes something."""
        return self.send(b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n")


@dataclass(frozen=True, slots=True)
class Order:
    """What a client asks for."""

    connection: Connection
    prompt_ids: tuple[int, ...]
    num_new_tokens: int

    @classmethod
    def of(cls, connection: Connection, body: bytes) -> Order:
        """Read the body of a request; ValueError says what it lacks."""
        values = json.loads(body)
        prompt, num_new_tokens = values["prompt"], values["max_tokens"]
        if not values.get("stream") or not values.get("ignore_eos") or not all(isinstance(i, int) for i in prompt):
            raise ValueError("a prompt of token ids with stream and ignore_eos is all that this server takes")
        return cls(connection, tuple(prompt), num_new_tokens)


class Front:
    """All of HTTP but the tokens: reads requests in a thread of its own and keeps them until they are taken."""

    def __init__(self, port: int, model_name: str) -> None:
        self._model_name = model_name
        self._listener = socket.create_server((HOST, port), backlog=128)
        self._changed = threading.Condition()
        self._orders: deque[Order] = deque()
        threading.Thread(target=self._run, daemon=True).start()

    def take(self, *, is_idle: bool) -> list[Order]:
        """The requests that have come; an idle caller waits for one."""
        with self._changed:
            while is_idle and not self._orders:
                self._changed.wait()
            return [self._orders.popleft() for _ in range(len(self._orders))]

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.data is None:
                        client, _ = self._listener.accept()
                        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        selector.register(client, selectors.EVENT_READ, Connection(client))
                    else:
                        self._read(selector, key.data)

    def _read(self, selector: selectors.BaseSelector, connection: Connection) -> None:
        try:
            request = connection.request()
        except (ValueError, OSError):
            selector.unregister(connection.client)
            connection.client.close()
            return
        if request is not None:
            selector.unregister(connection.client)
            self._answer(connection, *request)

    def _answer(self, connection: Connection, method: str, path: str, body: bytes) -> None:
        if (method, path) == ("POST", "/v1/completions"):
            try:
                order = Order.of(connection, body)
            except (ValueError, KeyError, TypeError) as error:
                connection.send_json("400 Bad Request", {"error": repr(error)})
                return
            with self._changed:
                self._orders.append(order)
                self._changed.notify()
        elif path == "/v1/models":
            connection.send_json("200 OK", {"object": "list", "data": [{"id": self._model_name, "object": "model"}]})
        elif path == "/health":
            connection.send_json("200 OK", {"status": "ok"})
        else:
            connection.send_json("404 Not Found", {"error": f"{method} {path}"})


class Answer:
    """One request in the pipeline."""

    def __init__(self, order: Order, handle: Any) -> None:
        self._order = order
        self._handle = handle
        self._num_sent = 0
        self._is_open = order.connection.send(STREAM_HEAD)

    def go_on(self) -> bool:
        """Send what is new; whether more is to come."""
        ids = []
        while self._handle.can_read():
            ids += [token_id for output in self._handle.read().values() for token_id in output.generated_ids]
        self._num_sent += len(ids)
        is_last = self._num_sent >= self._order.num_new_tokens
        if ids:
            choice = {"index": 0, "text": "", "token_ids": ids, "finish_reason": "length" if is_last else None}
            self._is_open = self._is_open and self._order.connection.send_event({"choices": [choice]})
        if is_last:
            usage = {"prompt_tokens": len(self._order.prompt_ids), "completion_tokens": self._num_sent}
            self._order.connection.send_event({"choices": [], "usage": usage})
            self._order.connection.send(b"data: [DONE]\n\n")
        elif not self._is_open:
            self._handle.cancel()
        if is_last or not self._is_open:
            self._order.connection.client.close()
            return False
        return True


def serve(pipeline: Any, front: Front) -> None:
    """Run the pipeline for what the front takes in; never returns."""
    numbers = itertools.count()
    live: list[Answer] = []
    while True:
        for order in front.take(is_idle=not pipeline.has_non_finished_requests()):
            config = genai.GenerationConfig()
            config.max_new_tokens = order.num_new_tokens
            config.ignore_eos = True
            config.do_sample = False
            ids = openvino.Tensor(np.array([order.prompt_ids], np.int64))
            live.append(Answer(order, pipeline.add_request(next(numbers), ids, config)))
        pipeline.step()
        live = [answer for answer in live if answer.go_on()]


def main() -> None:
    """Load, then serve."""
    parser = argparse.ArgumentParser(description="Serve a model by OpenVINO GenAI.")
    parser.add_argument("model")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--context-tokens", type=int, default=1 << 16, help="that keys and values are kept of")
    parser.add_argument("--step-tokens", type=int, default=512, help="most rows a step")
    options = parser.parse_args()
    scheduler = genai.SchedulerConfig()
    scheduler.max_num_batched_tokens = options.step_tokens
    scheduler.num_kv_blocks = -(-options.context_tokens // KV_BLOCK_TOKENS)
    scheduler.enable_prefix_caching = True
    properties = {"INFERENCE_NUM_THREADS": options.threads, "PERFORMANCE_HINT": "LATENCY"}
    pipeline = genai.ContinuousBatchingPipeline(options.model, scheduler, "CPU", properties)
    serve(pipeline, Front(options.port, options.model))


if __name__ == "__main__":
    main()
