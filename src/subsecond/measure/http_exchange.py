"""One HTTP/1.1 request on a connection of its own, its answer read piece by piece; knows nothing of what is asked."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from subsecond.core.errors import InputError
from subsecond.measure.target import TargetError

MAX_LINE_BYTES = 2**16
MAX_HEADERS = 200
MAX_CHUNK_BYTES = 2**30
PIECE_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a server listens, and what stands before its paths."""

    host: str
    port: int
    is_tls: bool = False
    prefix: str = ""

    @classmethod
    def parse(cls, url: str) -> Origin:
        """The origin of a URL such as http://127.0.0.1:8000 or https://example.org/v1; InputError for other texts."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise InputError(f"{url[:200]!r} is no address of a server; give one such as http://127.0.0.1:8000/v1")
        if not parts.netloc.isascii() or not parts.path.isprintable() or not parts.path.isascii() or " " in parts.path:
            raise InputError(f"{url[:200]!r} has characters that an address cannot have; write them as %XX")
        is_tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if is_tls else 80), is_tls, prefix)

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine by its name."""
        return self.host == "localhost" or self.host.startswith("127.") or self.host == "::1"

    def head(self, method: str, path: str, headers: Mapping[str, str], num_body_bytes: int) -> bytes:
        """The bytes before the body of a request."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        lines = [f"{method} {self.prefix}{path} HTTP/1.1", f"Host: {host}:{self.port}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if num_body_bytes:
            lines += ["Content-Type: application/json", f"Content-Length: {num_body_bytes}"]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")


class Response:
    """Status and headers (names in small letters) of an answer, whose body is then read once."""

    def __init__(self, reader: asyncio.StreamReader, status: int, headers: Mapping[str, str]) -> None:
        self.status = status
        self.headers = headers
        self._reader = reader

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes; TargetError where it ends before its end."""
        if "chunked" in self.headers.get("transfer-encoding", "").lower():
            while size := await self._chunk_size():
                async for piece in self._exactly(size):
                    yield piece
                await self._line()
            while await self._line():  # trailers
                pass
        elif "content-length" in self.headers:
            async for piece in self._exactly(_size(self.headers["content-length"], 10)):
                yield piece
        else:
            while piece := await self._reader.read(PIECE_BYTES):
                yield piece

    async def read(self, max_bytes: int) -> bytes:
        """The body up to a bound."""
        found = b""
        async for piece in self.pieces():
            found += piece
            if len(found) >= max_bytes:
                break
        return found[:max_bytes]

    async def _chunk_size(self) -> int:
        return _size((await self._line()).partition(b";")[0].decode("latin-1"), 16)

    async def _exactly(self, size: int) -> AsyncGenerator[bytes, None]:
        while size:
            piece = await self._reader.read(min(size, PIECE_BYTES))
            if not piece:
                raise TargetError("the connection closed before the end of the answer")
            size -= len(piece)
            yield piece

    async def _line(self) -> bytes:
        return await _line(self._reader)


@asynccontextmanager
async def exchange(
    origin: Origin, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> AsyncGenerator[Response, None]:
    """Send a request; the block gets the response once its head is there. Hangs up when the block ends, however.

    Raises:
        TargetError: nobody listens, or what answers does not speak HTTP.
    """
    context = ssl.create_default_context() if origin.is_tls else None
    try:
        reader, writer = await asyncio.open_connection(origin.host, origin.port, ssl=context, limit=MAX_LINE_BYTES)
    except OSError as error:
        raise TargetError(f"cannot connect to {origin.host} port {origin.port}: {error}") from error
    try:
        writer.write(origin.head(method, path, headers or {}, len(body)) + body)
        yield await _response(reader)
    except (OSError, asyncio.IncompleteReadError) as error:
        raise TargetError(f"the connection to {origin.host} port {origin.port} broke: {error!r}") from error
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def _response(reader: asyncio.StreamReader) -> Response:
    while True:
        words = (await _line(reader)).decode("latin-1").split(" ", 2)
        if len(words) < 2 or not words[0].startswith("HTTP/1.") or not (words[1].isdecimal() and len(words[1]) == 3):
            raise TargetError(f"no HTTP answer: {' '.join(words)[:100]!r}")
        headers: dict[str, str] = {}
        while line := await _line(reader):
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
            if len(headers) > MAX_HEADERS:
                raise TargetError(f"more than {MAX_HEADERS} headers in an answer")
        if not words[1].startswith("1"):  # a status from 100 on only says that the answer is to come
            return Response(reader, int(words[1]), headers)


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        line = await reader.readuntil(b"\n")
    except asyncio.LimitOverrunError:
        raise TargetError(f"a line of more than {MAX_LINE_BYTES} bytes in the head of an answer") from None
    except asyncio.IncompleteReadError as error:
        raise TargetError("the connection closed before the end of the answer") from error
    return line.rstrip(b"\r\n")


def _size(text: str, base: int) -> int:
    try:
        size = int(text.strip(), base)
    except ValueError:
        size = -1
    if not 0 <= size <= MAX_CHUNK_BYTES:
        raise TargetError(f"{text[:40]!r} is no size of an answer or of a part of it")
    return size
