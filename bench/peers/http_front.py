"""HTTP before a pipeline that is stepped: reads requests between steps and sends tokens as they come, in one thread.

Needs nothing but the standard library, so that it runs in the environments of peers. It costs next to nothing: tokens
are sent as ids and never become text. Everything stands still during a step, as a step of OpenVINO GenAI's pipeline
keeps the interpreter to itself.
"""

from __future__ import annotations

import json
import selectors
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

HOST = "127.0.0.1"
MAX_REQUEST_BYTES = 1 << 24
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
    """All of HTTP but the tokens: reads requests when it is asked for them."""

    def __init__(self, port: int, model_name: str) -> None:
        self._model_name = model_name
        self._listener = socket.create_server((HOST, port), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._orders: list[Order] = []

    def take(self, *, is_idle: bool) -> list[Order]:
        """The requests that have come; an idle caller waits for one."""
        while events := self._selector.select(None if is_idle and not self._orders else 0):
            for key, _ in events:
                if key.data is None:
                    client, _ = self._listener.accept()
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._selector.register(client, selectors.EVENT_READ, Connection(client))
                else:
                    self._read(key.data)
        orders, self._orders = self._orders, []
        return orders

    def close(self) -> None:
        """Listen no more."""
        self._selector.close()
        self._listener.close()

    def _read(self, connection: Connection) -> None:
        try:
            request = connection.request()
        except (ValueError, OSError):
            self._selector.unregister(connection.client)
            connection.client.close()
            return
        if request is not None:
            self._selector.unregister(connection.client)
            self._answer(connection, *request)

    def _answer(self, connection: Connection, method: str, path: str, body: bytes) -> None:
        if (method, path) == ("POST", "/v1/completions"):
            try:
                order = Order.of(connection, body)
            except (ValueError, KeyError, TypeError) as error:
                connection.send_json("400 Bad Request", {"error": repr(error)})
                return
            self._orders.append(order)
        elif path == "/v1/models":
            connection.send_json("200 OK", {"object": "list", "data": [{"id": self._model_name, "object": "model"}]})
        elif path == "/health":
            connection.send_json("200 OK", {"status": "ok"})
        else:
            connection.send_json("404 Not Found", {"error": f"{method} {path}"})


@dataclass(slots=True)
class NewTokens:
    """Token ids of one request that nobody has read yet."""

    generated_ids: list[int]


class Handle(Protocol):
    """One request in a pipeline, as OpenVINO GenAI has it."""

    def can_read(self) -> bool:
        """Whether there are tokens that have not been read."""

    def read(self) -> Mapping[int, Any]:
        """Sequences with the `generated_ids` that are new."""

    def cancel(self) -> None:
        """End it."""


class Pipeline(Protocol):
    """What is stepped."""

    def add(self, prompt_ids: tuple[int, ...], num_new_tokens: int, /) -> Handle:
        """Take a request."""

    def step(self) -> None:
        """Compute something for the requests that there are."""


class Answer:
    """One request in the pipeline."""

    def __init__(self, order: Order, handle: Handle) -> None:
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


def serve(pipeline: Pipeline, front: Front, num_requests: int | None = None) -> None:
    """Run the pipeline for what the front takes in, for ever or until so many requests have been answered."""
    live: list[Answer] = []
    num_done = 0
    while num_done != num_requests:
        for order in front.take(is_idle=not live):
            live.append(Answer(order, pipeline.add(order.prompt_ids, order.num_new_tokens)))
        pipeline.step()
        rest = [answer for answer in live if answer.go_on()]
        num_done += len(live) - len(rest)
        live = rest
    front.close()
