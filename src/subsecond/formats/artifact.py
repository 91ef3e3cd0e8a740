"""The artifact folder: packed weights, tokenizer and manifest, written in one atomic step and read through a mapping.

Layout: `<folder>/subsecond/manifest.json`, `packed.bin` and further files such as `tokenizer.json`. What the packed
bytes mean is known to the backend that packed them; nothing here interprets them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from subsecond.core.errors import FormatError
from subsecond.formats.artifact_manifest import (
    ALIGNMENT,
    MAX_MANIFEST_BYTES,
    PACKED_NAME,
    Manifest,
    PackedTensor,
    SourceFile,
    StoredFile,
    check_file_name,
    parse_manifest,
)
from subsecond.formats.whole_folder import move_into_place, sync_folder

FOLDER_NAME = "subsecond"
MANIFEST_NAME = "manifest.json"
_CHUNK_BYTES = 2**20


def is_artifact(path: Path) -> bool:
    """Whether `path` is a folder that holds an artifact."""
    return (path / FOLDER_NAME / MANIFEST_NAME).is_file()


class ArtifactWriter:
    """Writes an artifact into `folder`, replacing the one that is there. A context manager: committed at its end,
    and nothing changed on disk when an exception leaves it.

    `model`, `packing` and `chat_template` go into the manifest as they are; see `Manifest`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        model: Mapping[str, object],
        source: SourceFile,
        shapes: Mapping[str, tuple[int, ...]],
        packing: Mapping[str, object],
        chat_template: str | None = None,
    ) -> None:
        self._folder = folder
        self._about = (model, chat_template, source, shapes, packing)
        self._tensors: dict[str, PackedTensor] = {}
        self._files: list[str] = []

    def __enter__(self) -> ArtifactWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        # Beside its final place, so that the last step is a rename within one file system.
        self._partial = Path(tempfile.mkdtemp(prefix=f".{FOLDER_NAME}-", dir=self._folder))
        self._packed = (self._partial / PACKED_NAME).open("wb")
        self._hash = hashlib.sha256()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            self._packed.close()
            shutil.rmtree(self._partial, ignore_errors=True)

    def add_tensor(
        self, name: str, data: NDArray[np.uint8], *, packed_format: str, n: int, k: int, count: int = 1
    ) -> None:
        """Append the bytes of one packed tensor at the next aligned offset."""
        assert name not in self._tensors, f"tensor {name!r} was added before"
        assert data.dtype == np.uint8 and data.size > 0, f"tensor {name!r} must be packed into bytes"
        self._append(b"\0" * (-self._packed.tell() % ALIGNMENT))
        self._tensors[name] = PackedTensor(packed_format, n, k, self._packed.tell(), data.size, count)
        self._append(np.ascontiguousarray(data).reshape(-1).data)

    def new_file(self, name: str) -> Path:
        """Where the caller is to write a further small file before the end; it is listed and hashed then."""
        check_file_name(name, "artifact")
        assert name not in (PACKED_NAME, MANIFEST_NAME, *self._files), f"file {name!r} was added before"
        self._files.append(name)
        return self._partial / name

    def _append(self, data: bytes | memoryview) -> None:
        self._packed.write(data)
        self._hash.update(data)

    def _commit(self) -> None:
        num_bytes = self._packed.tell()
        self._packed.flush()
        os.fsync(self._packed.fileno())
        model, chat_template, source, shapes, packing = self._about
        files = {PACKED_NAME: StoredFile(num_bytes, self._hash.hexdigest())}
        files |= {name: _finish(self._partial / name) for name in self._files}
        manifest = Manifest(model, chat_template, source, shapes, packing, self._tensors, files)
        text = manifest.to_text()
        parse_manifest(text, "artifact")  # what is written can be read again
        _write(self._partial / MANIFEST_NAME, text.encode())
        self._partial.chmod(0o755)
        sync_folder(self._partial)
        move_into_place(self._partial, self._folder / FOLDER_NAME)
        sync_folder(self._folder)


class Artifact:
    """An artifact folder, opened for reading. `manifest` is checked; packed bytes are mapped when first asked for."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._packed: NDArray[np.uint8] | None = None

    @classmethod
    def open(cls, path: Path) -> Artifact:
        """Read and check the manifest in `path`; FormatError when it is damaged or none."""
        place = path / FOLDER_NAME / MANIFEST_NAME
        try:
            with place.open("rb") as file:
                # read() allocates what it is asked for, whatever the file has
                content = file.read(min(os.fstat(file.fileno()).st_size, MAX_MANIFEST_BYTES) + 1)
        except OSError as error:
            raise FormatError(f"{path} holds no artifact: {place} cannot be read ({error.strerror})") from error
        if len(content) > MAX_MANIFEST_BYTES:
            raise FormatError(f"{place}: larger than {MAX_MANIFEST_BYTES} bytes, which no manifest is")
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"{place}: not UTF-8 text: {error}") from error
        return cls(path, parse_manifest(text, str(place)))

    @property
    def packed(self) -> NDArray[np.uint8]:
        """All of packed.bin, read-only and mapped; FormatError when its size is not what the manifest says."""
        if self._packed is None:
            self._packed = self._map()
        return self._packed

    def tensor(self, name: str) -> NDArray[np.uint8]:
        """The bytes of one packed tensor, a read-only view of the mapping; FormatError when there is no such tensor."""
        tensor = self.manifest.tensors.get(name)
        if tensor is None:
            raise FormatError(f"{self.path}: the artifact has no packed tensor {name!r}; {self.remedy}")
        return self.packed[tensor.offset : tensor.offset + tensor.num_bytes]

    def read_packed_into(self, memory: NDArray[np.uint8]) -> None:
        """Read packed.bin into `memory`, writable uint8 [its size]; FormatError when the file is shorter."""
        place, num_bytes = self.file_path(PACKED_NAME), self.manifest.files[PACKED_NAME].num_bytes
        assert memory.shape == (num_bytes,), f"memory of shape {memory.shape} for {num_bytes} bytes"
        view, done = memory.data, 0
        try:
            with place.open("rb", buffering=0) as file:
                while done < num_bytes and (count := file.readinto(view[done:])):
                    done += count
        except OSError as error:
            raise FormatError(f"{place} cannot be read ({error.strerror}); {self.remedy}") from error
        if done < num_bytes:
            raise FormatError(f"{place} has {done} bytes, the manifest says {num_bytes}; {self.remedy}")

    def file_path(self, name: str) -> Path:
        """Path of a file that the manifest lists; FormatError when it does not."""
        if name not in self.manifest.files:
            raise FormatError(f"{self.path}: the artifact has no file {name!r}; {self.remedy}")
        return self.path / FOLDER_NAME / name

    @property
    def remedy(self) -> str:
        """What the user can do about damage, the end of a message."""
        return f"`subsecond pull {self.path / self.manifest.source.name}` makes the artifact anew"

    def check_sizes(self) -> None:
        """Compare the size of every file with the manifest, reading none; FormatError at the first difference."""
        for name, expected in self.manifest.files.items():
            place = self.file_path(name)
            try:
                num_bytes = place.stat().st_size
            except OSError as error:
                raise FormatError(f"{place} cannot be read ({error.strerror}); {self.remedy}") from error
            if num_bytes != expected.num_bytes:
                raise FormatError(
                    f"{place} has {num_bytes} bytes, the manifest says {expected.num_bytes}; {self.remedy}"
                )

    def verify(self) -> None:
        """Read every file and compare size and sha256 with the manifest; FormatError at the first difference."""
        for name, expected in self.manifest.files.items():
            place = self.file_path(name)
            digest, num_bytes = hashlib.sha256(), 0
            try:
                with place.open("rb") as file:
                    while chunk := file.read(_CHUNK_BYTES):
                        digest.update(chunk)
                        num_bytes += len(chunk)
            except OSError as error:
                raise FormatError(f"{place} cannot be read ({error.strerror}); {self.remedy}") from error
            if (num_bytes, digest.hexdigest()) != (expected.num_bytes, expected.sha256):
                raise FormatError(f"{place} is damaged: size or sha256 is not what the manifest says; {self.remedy}")

    def replace_source_time(self, modified_ns: int) -> None:
        """Note another time of modification of the unchanged source, on disk too; OSError when that cannot be.

        Nothing is written when another process has replaced the artifact since it was opened.
        """
        source = replace(self.manifest.source, modified_ns=modified_ns)
        manifest = replace(self.manifest, source=source)
        # Every step goes through this descriptor, which stays with the folder when another takes its place.
        folder = os.open(self.path / FOLDER_NAME, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.fdopen(os.open(MANIFEST_NAME, os.O_RDONLY, dir_fd=folder), "rb") as present:
                if present.read(MAX_MANIFEST_BYTES) != self.manifest.to_text().encode():
                    return
            partial = f".{MANIFEST_NAME}-{os.getpid()}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
            try:
                with os.fdopen(os.open(partial, flags, 0o644, dir_fd=folder), "wb") as file:
                    file.write(manifest.to_text().encode())
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, MANIFEST_NAME, src_dir_fd=folder, dst_dir_fd=folder)
            except FileExistsError:
                raise
            except OSError:
                os.unlink(partial, dir_fd=folder)
                raise
        finally:
            os.close(folder)
        self.manifest = manifest

    def _map(self) -> NDArray[np.uint8]:
        place = self.file_path(PACKED_NAME)
        expected = self.manifest.files[PACKED_NAME].num_bytes
        try:
            with place.open("rb") as file:
                num_bytes = os.fstat(file.fileno()).st_size
                if num_bytes != expected:
                    raise FormatError(f"{place} has {num_bytes} bytes, the manifest says {expected}; {self.remedy}")
                if num_bytes == 0:
                    return np.empty(0, np.uint8)
                mapping = mmap.mmap(file.fileno(), num_bytes, access=mmap.ACCESS_READ)
        except OSError as error:
            raise FormatError(f"{place} cannot be read ({error.strerror}); {self.remedy}") from error
        return np.frombuffer(mapping, np.uint8)


def _finish(place: Path) -> StoredFile:
    """Bring a file to the disk and describe it."""
    with place.open("rb") as file:
        os.fsync(file.fileno())
        content = file.read()
    return StoredFile(len(content), hashlib.sha256(content).hexdigest())


def _write(place: Path, content: bytes) -> None:
    with place.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
