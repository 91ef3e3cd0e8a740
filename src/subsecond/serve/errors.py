"""Errors as answers: which HTTP status, type and code each error has, and its body in the form of each API."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Literal

import msgspec
from starlette.responses import Response

from subsecond.core.errors import (
    ContextLengthError,
    InputError,
    OverloadedError,
    ResourceError,
    SubsecondError,
    UnsupportedError,
)

ApiStyle = Literal["openai", "anthropic", "ollama"]
_log = logging.getLogger(__name__)


class FieldError(InputError):
    """A field of a request is not acceptable; `param` is its path, for example `messages[0].content`."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class UnknownModelError(InputError):
    """There is no model of that name here."""


class NotFoundError(InputError):
    """There is no such path, or nothing of that name under it."""


class MethodError(InputError):
    """The path does not know this method; `allowed` are those it knows."""

    def __init__(self, message: str, *, allowed: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allowed = allowed


class KeyRefusedError(SubsecondError):
    """There is no API key, or none that is known here."""


class OriginRefusedError(SubsecondError):
    """The request names a host or a web origin that this server does not answer."""


class BodyTooLargeError(InputError):
    """The body is larger than allowed."""


class BodiesOverloadedError(OverloadedError):
    """The bodies of other requests leave no memory for this one, which is not read further."""


class BodyTimeoutError(SubsecondError):
    """The body did not arrive in time."""


class ContentTypeError(InputError):
    """The body has a type or an encoding that is not read here."""


class UnavailableError(SubsecondError):
    """Not now and not because of the request: the server drains, or a model could not be loaded."""

    def __init__(self, message: str, *, code: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s


class InternalError(SubsecondError):
    """A fault of ours; the message names the request under which the log tells more."""


class ClientGoneError(SubsecondError):
    """The client closed its connection, so nobody reads the answer."""


@dataclass(frozen=True, slots=True)
class ErrorKind:
    """How an error is told: HTTP status, the OpenAI form's type and code, the Anthropic form's type."""

    status: int
    type: str
    code: str | None
    anthropic_type: str


_INVALID = "invalid_request_error"

# The first row whose class fits decides, so the more special stand first.
_KINDS: tuple[tuple[type[SubsecondError], ErrorKind], ...] = (
    (ContextLengthError, ErrorKind(400, _INVALID, "context_length_exceeded", _INVALID)),
    (UnknownModelError, ErrorKind(404, _INVALID, "model_not_found", "not_found_error")),
    (NotFoundError, ErrorKind(404, _INVALID, "not_found", "not_found_error")),
    (MethodError, ErrorKind(405, _INVALID, "method_not_allowed", _INVALID)),
    (BodyTooLargeError, ErrorKind(413, _INVALID, "body_too_large", "request_too_large")),
    (ContentTypeError, ErrorKind(415, _INVALID, "unsupported_content_type", _INVALID)),
    (BodyTimeoutError, ErrorKind(408, _INVALID, "body_timeout", "timeout_error")),
    (KeyRefusedError, ErrorKind(401, _INVALID, "invalid_api_key", "authentication_error")),
    (OriginRefusedError, ErrorKind(403, _INVALID, "origin_not_allowed", "permission_error")),
    (ClientGoneError, ErrorKind(499, _INVALID, "client_closed_request", _INVALID)),
    (InputError, ErrorKind(400, _INVALID, None, _INVALID)),
    (UnsupportedError, ErrorKind(400, _INVALID, "unsupported", _INVALID)),
    (OverloadedError, ErrorKind(429, "rate_limit_error", "overloaded", "rate_limit_error")),
    (UnavailableError, ErrorKind(503, "server_error", None, "overloaded_error")),
    (ResourceError, ErrorKind(503, "server_error", "insufficient_resources", "overloaded_error")),
    (SubsecondError, ErrorKind(500, "server_error", "internal_error", "api_error")),
)


def kind_of(error: SubsecondError) -> ErrorKind:
    """Return how an error is told."""
    return next(kind for cls, kind in _KINDS if isinstance(error, cls))


def style_of(path: str) -> ApiStyle:
    """Return whose form the errors of a path have."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "ollama" if path.startswith("/api/") else "openai"


def error_body(error: SubsecondError, style: ApiStyle = "openai") -> dict[str, object]:
    """Return the JSON object that tells an error, also for the last event of a stream that fails."""
    kind, message = kind_of(error), str(error)
    if style == "ollama":
        return {"error": message}
    if style == "anthropic":
        return {"type": "error", "error": {"type": kind.anthropic_type, "message": message}}
    code = getattr(error, "code", kind.code)
    return {"error": {"message": message, "type": kind.type, "param": getattr(error, "param", None), "code": code}}


def error_response(error: SubsecondError, style: ApiStyle = "openai") -> Response:
    """Return the whole answer that tells an error."""
    content = msgspec.json.encode(error_body(error, style))
    return Response(content, kind_of(error).status, _headers(error), media_type="application/json")


def public_error(error: BaseException, request_id: str) -> SubsecondError:
    """Return the error as its client may see it: one of ours as it is, any other logged and told by its number."""
    if isinstance(error, SubsecondError):
        if kind_of(error).status >= 500 and not isinstance(error, UnavailableError):
            _log.error("request %s failed: %s", request_id, error)
        return error
    if isinstance(error, MemoryError):
        return ResourceError("the memory does not suffice for this request; send a smaller one, or ask again later")
    if isinstance(error, RecursionError):
        return InputError("the request is nested too deeply; make it flatter")
    _log.error("request %s met an error of ours", request_id, exc_info=error)
    return InternalError(f"an error of the server, not of the request; its log tells more under request {request_id}")


def _headers(error: SubsecondError) -> dict[str, str]:
    headers: dict[str, str] = {}
    retry_after_s: float | None = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
        headers["retry-after-ms"] = str(max(1, math.ceil(retry_after_s * 1e3)))
    if isinstance(error, BodyTooLargeError | BodyTimeoutError | BodiesOverloadedError):
        headers["connection"] = "close"  # the rest of the body is not worth reading
    if isinstance(error, MethodError):
        headers["allow"] = ", ".join(error.allowed)
    if isinstance(error, KeyRefusedError):
        headers["www-authenticate"] = "Bearer"
    return headers
