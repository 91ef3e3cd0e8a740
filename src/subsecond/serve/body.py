"""Request bodies: read within a bound of size and time, decoded into a struct, every refusal naming its place."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, NoReturn, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from subsecond.core.errors import InputError
from subsecond.serve.errors import (
    BodyTimeoutError,
    BodyTooLargeError,
    ClientGoneError,
    ContentTypeError,
    FieldError,
)
from subsecond.serve.limits import Holding

T = TypeVar("T")
LARGE_BODY_BYTES = 2**18
MAX_CONTAINERS = 50_000
MAX_TOLD_CHARS = 300
# possessive, and content with a string that does not end: linear whatever the text is
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_PLACE = re.compile(r" - at `\$\.?(?P<place>[^`]*)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(?P<name>.*)`$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<name>.*)`$", re.DOTALL)


async def read_body(request: Request, holding: Holding, *, max_bytes: int, timeout_s: float) -> bytes:
    """Return the whole body of a request; one that is too large is refused before it is read, or as soon as it is.

    Raises:
        BodyTooLargeError, BodyTimeoutError, OverloadedError: the bounds; ContentTypeError: it is compressed.
        ClientGoneError: the client went away.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise ContentTypeError(f"content-encoding {encoding[:50]!r} is not read here; send the body as it is")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    chunks: list[bytes] = []
    num_bytes = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                num_bytes += len(chunk)
                if num_bytes > max_bytes:
                    raise _too_large(max_bytes)
                holding.add_bytes(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise BodyTimeoutError(f"the body did not arrive within {timeout_s:g} s; send it faster") from None
    except ClientDisconnect:
        raise ClientGoneError("the client closed the connection before its body was here") from None
    return b"".join(chunks)


def check_content_type(request: Request) -> None:
    """ContentTypeError unless the body is said to be JSON, or nothing is said of it."""
    given = request.headers.get("content-type")
    if given is None:
        return
    kind, _, parameters = given.partition(";")
    kind = kind.strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise ContentTypeError(f"content-type {kind[:80]!r} is not read here; send application/json")
    charset = parameters.strip().lower().replace('"', "")
    if charset.startswith("charset=") and charset.removeprefix("charset=") not in ("utf-8", "utf8", "us-ascii"):
        raise ContentTypeError(f"{charset[:80]!r} is not read here; send UTF-8")


def decode(body: bytes, kind: type[T]) -> T:
    """Return a JSON body as a struct; unknown fields, wrong types and fields given twice are refused by name.

    Raises:
        FieldError: what is wrong, and where.
    """
    try:
        _check_containers(body)
        value: T = _decoder(kind).decode(body)
        _check_names(body)
    except msgspec.ValidationError as error:
        _refuse_field(str(error))
    except UnicodeDecodeError as error:
        raise FieldError(f"the body is not UTF-8: {error.reason} at or after byte {error.start} of a text") from None
    except RecursionError:
        raise FieldError("the body is nested too deeply; make it flatter") from None
    except (msgspec.DecodeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        text = "the body is empty; send a JSON object" if not body.strip() else f"the body is no valid JSON: {error}"
        raise FieldError(text) from None
    return value


async def decode_beside(body: bytes, kind: type[T]) -> T:
    """As `decode`, a large body in a thread, since its objects take long to make."""
    return decode(body, kind) if len(body) <= LARGE_BODY_BYTES else await asyncio.to_thread(decode, body, kind)


def _check_containers(body: bytes) -> None:
    """FieldError if there are so many lists and objects that they take far more time and memory than the body."""
    if len(body) <= MAX_CONTAINERS or _num_containers(body) <= MAX_CONTAINERS:
        return
    num_containers = _num_containers(_STRING.sub(b"", body))
    if num_containers > MAX_CONTAINERS:
        raise FieldError(f"the body has {num_containers} lists and objects; at most {MAX_CONTAINERS} are read")


def _num_containers(text: bytes) -> int:
    return text.count(b"[") + text.count(b"{")


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {max_bytes} bytes, the most that is read; send less")


_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {}  # one a struct; making one takes longer than using it


def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    if kind not in _DECODERS:
        _DECODERS[kind] = msgspec.json.Decoder(kind)
    return _DECODERS[kind]


def _refuse_field(message: str) -> NoReturn:
    """Raise what msgspec says as an error that names the field as callers write it."""
    place = ""
    found = _PLACE.search(message)
    if found:
        message, place = message[: found.start()], found["place"][:MAX_TOLD_CHARS]
    for pattern, text in ((_UNKNOWN, "is not a field that is known here; leave it out"), (_MISSING, "is missing")):
        named = pattern.match(message)
        if named:
            param = f"{place}.{named['name']}" if place else named["name"]
            raise FieldError(f"{param[:200]!r} {text}", param=param[:200]) from None
    text = message[:1].lower() + message[1:MAX_TOLD_CHARS]  # it repeats what was given
    raise FieldError(f"{place}: {text}" if place else f"the body: {text}", param=place or None) from None


def _refuse_twice(pairs: list[tuple[str, Any]]) -> None:
    if len(pairs) > 1 and len({name for name, _ in pairs}) < len(pairs):
        names = [name for name, _ in pairs]
        name = next(name for name in names if names.count(name) > 1)
        raise FieldError(f"{name[:200]!r} is given twice in one object; give it once", param=name[:200])


# the C scanner of the standard library calls the hook for each object and keeps nothing
_NAMES = json.JSONDecoder(object_pairs_hook=_refuse_twice, parse_int=len, parse_float=len)


def _check_names(body: bytes) -> None:
    """FieldError if an object has a name twice, of which other readers of JSON take one in silence."""
    _NAMES.decode(body.decode())
