"""Fetches one file from the Hugging Face hub through its own client, which resumes and keeps the credentials."""

from __future__ import annotations

import re
from pathlib import Path

from subsecond.core.errors import DownloadError, IntegrityError, UnsupportedError
from subsecond.models.catalogue import HubSource
from subsecond.models.download import redact, sha256_of


def fetch_from_hub(name: str, source: HubSource, path: Path) -> None:
    """Fetch the source's file to `path`, checked against the hash that the hub states for it.

    Raises:
        UnsupportedError: the hub's client is not installed.
        DownloadError: the hub does not answer.
        IntegrityError: the file is not the one that the hub announced, or the hub states no hash to tell.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UnsupportedError(
            f"{name} comes from the Hugging Face hub, whose client is not installed; install it with: "
            "pip install 'subsecond[hub]'"
        ) from error
    try:
        address = huggingface_hub.hf_hub_url(source.repository, source.file)
        stated = str(huggingface_hub.get_hf_file_metadata(address).etag or "").strip('"')
        if not re.fullmatch("[0-9a-f]{64}", stated):
            raise IntegrityError(
                f"the hub states no sha256 for {source.repository}/{source.file} (only {stated[:80]!r}), so it "
                "cannot be checked and was not fetched; if HF_ENDPOINT is set, try without it, or download the file "
                "yourself and give its path to subsecond"
            )
        fetched = Path(huggingface_hub.hf_hub_download(source.repository, source.file, local_dir=path.parent))
    except IntegrityError:
        raise
    except Exception as error:
        # The client raises errors of its own HTTP library, which differs between its versions.
        raise DownloadError(
            f"{source.repository}/{source.file} could not be fetched from the hub: {redact(str(error))}. "
            "Check the connection (HF_ENDPOINT names a mirror) and run the same command again; it goes on where it "
            "stopped"
        ) from error
    sha256 = sha256_of(fetched)
    if sha256 != stated:
        fetched.unlink()
        raise IntegrityError(f"{source.file} has sha256 {sha256} instead of {stated} and was deleted; try again")
    fetched.replace(path)
