"""Downloads one address to one file: resumes, retries, reports progress; what the file must hold is not known here."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from subsecond.core.errors import DownloadError, ResourceError

Progress = Callable[[int, int | None], None]
CHUNK_BYTES = 1 << 20
READ_TIMEOUT_S = 60
NUM_ATTEMPTS = 4
MAX_FILE_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Trust:
    """How the user's network is to be used: a file or folder of certificates, and a proxy; empty means the default."""

    cert: str = ""
    proxy: str = ""


def download(url: str, path: Path, trust: Trust, progress: Progress | None = None) -> None:
    """Download `url` (http, https or file) to `path`; what is already there is taken as the beginning of it.

    Raises:
        DownloadError: the address does not answer, or the transfer broke off too often; what came is kept.
        ResourceError: `path` cannot be written.
    """
    shown = redact(url)
    address = urllib.parse.urlsplit(url)
    if address.scheme == "file":
        try:
            with Path(urllib.request.url2pathname(address.path)).open("rb") as source:
                _copy_file(source, path)
        except OSError as error:
            raise DownloadError(f"{shown} cannot be read: {error.strerror}") from error
        return
    if address.scheme not in ("http", "https"):
        raise DownloadError(f"{shown} is neither http, https nor a file")
    opener = _opener(trust)
    for attempt in range(1, NUM_ATTEMPTS + 1):
        try:
            _download_rest(opener, url, path, progress)
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == 416:
                if path.exists() and error.headers["Content-Range"] == f"bytes */{path.stat().st_size}":
                    return  # nothing was missing
                # What we have is longer than the file: begin again.
                path.unlink(missing_ok=True)
            elif error.code < 500 and error.code not in (408, 429):
                raise DownloadError(f"{shown} answers {error.code} {error.reason}; try again later") from error
            failure: Exception = error
        except (OSError, http.client.HTTPException, _BrokenOffError) as error:
            failure = error
        if attempt < NUM_ATTEMPTS:
            time.sleep(attempt)
    raise DownloadError(
        f"the download of {shown} broke off {NUM_ATTEMPTS} times, last with: {redact(str(failure))}. "
        "Check the connection and run the same command again; it goes on where it stopped"
    )


def _download_rest(opener: urllib.request.OpenerDirector, url: str, path: Path, progress: Progress | None) -> None:
    """Append what `path` lacks; begins again when the server sends the whole."""
    start = path.stat().st_size if path.exists() else 0
    headers = {"User-Agent": "subsecond", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with opener.open(urllib.request.Request(url, headers=headers), timeout=READ_TIMEOUT_S) as response:
        is_rest = response.status == 206 and str(response.headers["Content-Range"]).startswith(f"bytes {start}-")
        start = start if is_rest else 0
        length = response.headers["Content-Length"]
        total = start + int(length) if length and length.isdigit() else None
        if total is not None and total > MAX_FILE_BYTES:
            raise DownloadError(f"{redact(url)} has {total:,} bytes, more than any model of the catalogue")
        num_bytes = start
        with disk_errors(path), path.open("ab" if is_rest else "wb") as file:
            while chunk := _read_chunk(response):
                num_bytes += len(chunk)
                if num_bytes > (total or MAX_FILE_BYTES):
                    raise DownloadError(f"{redact(url)} sends more than it announced; try again")
                file.write(chunk)
                if progress is not None:
                    progress(num_bytes, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and num_bytes < total:
        raise ConnectionError(f"{num_bytes:,} of {total:,} bytes came")


def _copy_file(source: IO[bytes], path: Path) -> None:
    with disk_errors(path), path.open("wb") as file:
        shutil.copyfileobj(source, file, CHUNK_BYTES)


class _BrokenOffError(Exception):
    """The transfer broke off; no OSError, which means the disk where both can happen."""


def _read_chunk(response: IO[bytes]) -> bytes:
    try:
        return response.read(CHUNK_BYTES)
    except OSError as error:
        raise _BrokenOffError(str(error)) from error


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the block, which writes `path`, into a ResourceError."""
    try:
        yield
    except OSError as error:
        raise ResourceError(
            f"{path} cannot be written: {error.strerror or error}; free some space, or set SUBSECOND_HOME to a folder "
            "that can be written"
        ) from error


def redact(text: str) -> str:
    """`text` without the user names and passwords of the addresses in it."""
    return re.sub(r"(\w://)[^/\s?#]*@", r"\1***@", text)


def sha256_of(path: Path) -> str:
    """Hash of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_space(folder: Path, wanted_bytes: int) -> None:
    """Raise ResourceError unless the folder's disk has room for that many bytes more."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < wanted_bytes:
        raise ResourceError(
            f"{folder} has {free_bytes / 1e6:,.0f} MB free and the download needs {wanted_bytes / 1e6:,.0f} MB; "
            "free some, or set SUBSECOND_HOME to a folder on a larger disk"
        )


def _opener(trust: Trust) -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    if trust.cert:
        is_folder = Path(trust.cert).is_dir()
        file, folder = (None, trust.cert) if is_folder else (trust.cert, None)
        context = ssl.create_default_context(cafile=file, capath=folder)
    handlers: list[urllib.request.BaseHandler] = [urllib.request.HTTPSHandler(context=context)]
    if trust.proxy:
        handlers.append(urllib.request.ProxyHandler({"http": trust.proxy, "https": trust.proxy}))
    return urllib.request.build_opener(*handlers)
