"""Who may ask: API keys kept as hashes, one tenant each, and the hosts and web origins that requests may name."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers

from subsecond.core.errors import InputError
from subsecond.serve.errors import KeyRefusedError, OriginRefusedError
from subsecond.serve.settings import ServeSettings

MIN_KEY_CHARS = 16
MAX_KEYS = 1000
MAX_FILE_BYTES = 2**20
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
NO_TENANT = ""
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"sha256:([0-9a-fA-F]{64})")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """The sha256 of a key and whose it is; the key itself is kept nowhere."""

    tenant: str
    sha256: bytes


class ApiKeys:
    """The keys of a server; without any, everybody who can connect is the one tenant ""."""

    def __init__(self, keys: Iterable[ApiKey] = ()) -> None:
        self._keys = tuple(keys)

    def __bool__(self) -> bool:
        return bool(self._keys)

    def tenant(self, headers: Headers) -> str:
        """Return whose key a request has; KeyRefusedError if it has none of ours."""
        if not self._keys:
            return NO_TENANT
        given = _given_key(headers)
        if given is None:
            raise KeyRefusedError("this server needs an API key; send it as `Authorization: Bearer KEY` or `x-api-key`")
        digest = hashlib.sha256(given.encode("utf-8", "surrogateescape")).digest()
        found: str | None = None
        for key in self._keys:  # all of them, whichever fits, so that the time tells nothing
            if hmac.compare_digest(key.sha256, digest):
                found = key.tenant
        if found is None:
            raise KeyRefusedError("this API key is not known here; check it for missing characters")
        return found


def parse_keys(text: str, source: str) -> tuple[ApiKey, ...]:
    """Return the keys of a text, one a line: `NAME KEY` or `KEY`, which may be given as `sha256:HEX` too.

    Empty lines and those that begin with # are passed over. Several keys may have one name: they are one tenant.
    An error names `source` and the line, never the key.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or line.lstrip().startswith("#"):
            continue
        where = f"{source}, line {number}"
        if len(words) > 2:
            raise InputError(f"{where} has {len(words)} words; write a name and a key, or a key alone")
        hashed = _SHA256.fullmatch(words[-1])
        if not hashed and len(words[-1]) < MIN_KEY_CHARS:
            raise InputError(
                f"{where} has a key of {len(words[-1])} characters, which could be guessed; give at least "
                f"{MIN_KEY_CHARS}, for example from: python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        digest = bytes.fromhex(hashed[1]) if hashed else hashlib.sha256(words[-1].encode()).digest()
        name = words[0] if len(words) == 2 else f"key-{digest.hex()[:8]}"
        if not _NAME.fullmatch(name):
            raise InputError(f"{where} has a name that is not allowed; give letters, digits, '.', '_' and '-'")
        keys.append(ApiKey(name, digest))
    if len(keys) > MAX_KEYS:
        raise InputError(f"{source} has {len(keys)} keys; give at most {MAX_KEYS}")
    return tuple(keys)


def read_keys(path: str | None, variable: str | None) -> ApiKeys:
    """Return the keys of a key file and of the environment variable, whose lines may be parted by commas too."""
    keys: tuple[ApiKey, ...] = ()
    if path is not None:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read the key file {path}: {error.strerror or error}") from error
        if len(content) > MAX_FILE_BYTES:
            raise InputError(f"the key file {path} has {len(content)} bytes; at most {MAX_FILE_BYTES} are read")
        try:
            keys = parse_keys(content.decode(), path)
        except UnicodeDecodeError:
            raise InputError(f"the key file {path} is not UTF-8 text") from None
        if not keys:
            raise InputError(f"the key file {path} has no key; write lines of a name and a key, or leave it out")
    if variable is not None:
        keys += parse_keys(variable.replace(",", "\n"), "SUBSECOND_API_KEYS")
    return ApiKeys(keys)


def check_reach(settings: ServeSettings, keys: ApiKeys) -> None:
    """InputError if other machines could use the server without a key."""
    if not settings.is_local and not keys:
        raise InputError(
            f"host {settings.host} lets other machines connect, which needs API keys: write lines of a name and a key "
            "into a file and give --api-key-file, or set SUBSECOND_API_KEYS; or listen on 127.0.0.1"
        )


class Doorkeeper:
    """Checks who a request comes from before anything else is done with it."""

    def __init__(self, settings: ServeSettings, keys: ApiKeys) -> None:
        self._keys = keys
        self._origins = frozenset(origin.rstrip("/") for origin in settings.allowed_origins)
        hosts = {host.lower() for host in settings.allowed_hosts}
        self._hosts: frozenset[str] | None = None
        # a page whose name an attacker points at this machine sends that name, so only known names are answered
        if settings.uds is None and (settings.is_local or hosts):
            own = settings.host.lower()
            self._hosts = frozenset({*hosts, *LOCAL_HOSTS, f"[{own}]" if ":" in own else own})

    def tenant(self, headers: Headers) -> str:
        """Return whose request it is.

        Raises:
            OriginRefusedError: the Host or Origin is not answered here; KeyRefusedError: no key, or none of ours.
        """
        if self._hosts is not None:
            host = _without_port(headers.get("host", ""))
            if host not in self._hosts or len(headers.getlist("host")) != 1:
                raise OriginRefusedError(
                    f"the host {host[:100]!r} is not answered here; start the server with --allowed-hosts to allow it"
                )
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins:
            raise OriginRefusedError(
                f"pages of {origin[:100]!r} may not call this server; start it with --allowed-origins to allow them"
            )
        return self._keys.tenant(headers)

    def shared_headers(self, headers: Headers) -> dict[str, str]:
        """Return what lets a page of an allowed origin read an answer; nothing for all others."""
        origin = headers.get("origin")
        if origin is None or origin not in self._origins:
            return {}
        shared = {"access-control-allow-origin": origin, "vary": "origin", "access-control-expose-headers": "*"}
        if "access-control-request-method" in headers:
            shared |= {
                "access-control-allow-methods": "GET, POST, DELETE",
                "access-control-allow-headers": headers.get("access-control-request-headers", "content-type")[:1000],
                "access-control-max-age": "600",
            }
        return shared

    def answers_preflight(self, headers: Headers) -> bool:
        """Whether a browser asks, without a key as browsers do, what a page of an allowed origin may send."""
        return headers.get("origin") in self._origins and "access-control-request-method" in headers


def _given_key(headers: Headers) -> str | None:
    key = headers.get("x-api-key")
    if key is not None:
        return key.strip()
    scheme, _, key = headers.get("authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None


def _without_port(host: str) -> str:
    host = host.strip().lower()
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0]
