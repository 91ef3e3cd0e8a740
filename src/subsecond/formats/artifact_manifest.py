"""The manifest of an artifact folder: what it says and the checks on what it says; opens no file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType

from subsecond.core.errors import FormatError
from subsecond.formats.fields import read_field, read_int, read_mapping, shorten

VERSION = 2
ALIGNMENT = 64  # bytes; a cache line, and the widest vector load
PACKED_NAME = "packed.bin"
MAX_MANIFEST_BYTES = 16 * 2**20

_MAX_SIZE = 2**48
_MAX_DIMENSION = 2**31 - 1
_MAX_COUNT = 2**16
_MAX_VALUES = 2**19  # a value of JSON takes up to some 100 bytes as a Python object: 52 MB; 20,000 tensors have 180,000
_MAX_NAME_CHARS = 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_KEYS = frozenset({"version", "model", "chat_template", "source", "shapes", "packing", "tensors", "files"})


@dataclass(frozen=True, slots=True)
class SourceFile:
    """The model file that an artifact was made from: name without folder, sha256 in hexadecimal, bytes.

    `modified_ns` is its time of modification, which tells a file that is surely the same without reading it; of a model
    in several files it is a number made of the times of all.
    """

    name: str
    sha256: str
    num_bytes: int
    modified_ns: int


@dataclass(frozen=True, slots=True)
class PackedTensor:
    """A range of packed.bin: a matrix [n, k] (a vector has n = 1) in a layout that `format` names to the backend.

    `count` such matrices follow each other where a weight is one of several experts.
    """

    format: str
    n: int
    k: int
    offset: int
    num_bytes: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class StoredFile:
    """Size and sha256 of a file beside the manifest."""

    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything about an artifact but its bytes.

    `model` is the model's configuration and `packing` how the weights were packed, both free-form here; `shapes` are
    the source's weights by name. `tensors` lie in packed.bin; `files` lists every file of the folder but the manifest.
    """

    model: Mapping[str, object]
    chat_template: str | None
    source: SourceFile
    shapes: Mapping[str, tuple[int, ...]]
    packing: Mapping[str, object]
    tensors: Mapping[str, PackedTensor]
    files: Mapping[str, StoredFile]

    def to_text(self) -> str:
        """JSON text that `parse_manifest` reads back."""
        content = {
            "version": VERSION,
            "model": dict(self.model),
            "chat_template": self.chat_template,
            "source": asdict(self.source),
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "packing": dict(self.packing),
            "tensors": {name: _tensor_fields(tensor) for name, tensor in self.tensors.items()},
            "files": {name: asdict(file) for name, file in self.files.items()},
        }
        return json.dumps(content, allow_nan=False) + "\n"


def parse_manifest(text: str, where: str) -> Manifest:
    """The manifest in `text`, every field checked; `where` names it in the messages of the FormatErrors."""
    content = _parse_object(text, where)
    version = read_field(content, "version", int, where)
    if version != VERSION:
        raise FormatError(
            f"{where}: artifact version {version}; this program reads version {VERSION}. "
            "`subsecond pull MODEL`, with the name or the path of the model, makes it anew"
        )
    if set(content) != _KEYS:
        raise FormatError(f"{where}: fields are {shorten(sorted(content), 200)}; they must be {sorted(_KEYS)}")
    chat_template = content["chat_template"]
    if chat_template is not None and not isinstance(chat_template, str):
        raise FormatError(f"{where}: chat_template is {shorten(chat_template)}; it must be text or null")
    files = {name: _stored_file(name, item, where) for name, item in _items(content, "files", where)}
    if PACKED_NAME not in files:
        raise FormatError(f"{where}: files does not list {PACKED_NAME!r}")
    tensors = {name: _tensor(item, f"{where}, tensor {name!r}") for name, item in _items(content, "tensors", where)}
    _check_ranges(tensors, files[PACKED_NAME].num_bytes, where)
    return Manifest(
        model=read_mapping(content, "model", where),
        chat_template=chat_template,
        source=_source(read_mapping(content, "source", where), f"{where}, source"),
        shapes=MappingProxyType(_shapes(read_mapping(content, "shapes", where), where)),
        packing=read_mapping(content, "packing", where),
        tensors=MappingProxyType(tensors),
        files=MappingProxyType(files),
    )


def check_file_name(name: str, where: str) -> None:
    """FormatError unless `name` is a plain file name that cannot leave its folder."""
    if not _FILE_NAME.fullmatch(name):
        raise FormatError(f"{where}: {shorten(name)} is no plain file name of letters, digits, '.', '_' and '-'")


def _parse_object(text: str, where: str) -> Mapping[str, object]:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise FormatError(f"{where}: a field occurs twice")
        return found

    def refuse(constant: str) -> object:
        raise FormatError(f"{where}: {constant} is no number of JSON")

    if sum(map(text.count, ",[{")) > _MAX_VALUES:
        raise FormatError(f"{where}: holds more than {_MAX_VALUES} values, which no manifest does")
    try:
        content = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise FormatError(f"{where}: holds {shorten(content)}; it must hold an object")
    return content


def _items(content: Mapping[str, object], name: str, where: str) -> list[tuple[str, Mapping[str, object]]]:
    section = read_mapping(content, name, where)
    for key in section:
        if not 1 <= len(key) <= _MAX_NAME_CHARS:
            raise FormatError(
                f"{where}: {name} has a name of {len(key)} characters; 1 to {_MAX_NAME_CHARS} are allowed"
            )
    return [(key, read_mapping(section, key, f"{where}, {name}")) for key in section]


def _sha256(item: Mapping[str, object], where: str) -> str:
    value = read_field(item, "sha256", str, where)
    if not _SHA256.fullmatch(value):
        raise FormatError(f"{where}: sha256 is {shorten(value)}; it must be 64 lower-case hexadecimal digits")
    return value


def _stored_file(name: str, item: Mapping[str, object], where: str) -> StoredFile:
    check_file_name(name, where)
    at = f"{where}, file {name!r}"
    return StoredFile(read_int(item, "num_bytes", at, 0, _MAX_SIZE), _sha256(item, at))


def _source(item: Mapping[str, object], where: str) -> SourceFile:
    return SourceFile(
        name=read_field(item, "name", str, where),
        sha256=_sha256(item, where),
        num_bytes=read_int(item, "num_bytes", where, 0, _MAX_SIZE),
        modified_ns=read_int(item, "modified_ns", where, -(2**63), 2**63 - 1),
    )


def _tensor(item: Mapping[str, object], where: str) -> PackedTensor:
    return PackedTensor(
        format=read_field(item, "format", str, where),
        n=read_int(item, "n", where, 1, _MAX_DIMENSION),
        k=read_int(item, "k", where, 1, _MAX_DIMENSION),
        offset=read_int(item, "offset", where, 0, _MAX_SIZE),
        num_bytes=read_int(item, "num_bytes", where, 1, _MAX_SIZE),
        count=read_int(item, "count", where, 1, _MAX_COUNT) if "count" in item else 1,
    )


def _tensor_fields(tensor: PackedTensor) -> dict[str, object]:
    """Fields of a tensor in the manifest; the count only where there are several, as manifests always were."""
    fields: dict[str, object] = asdict(tensor)
    if tensor.count == 1:
        del fields["count"]
    return fields


def _check_ranges(tensors: Mapping[str, PackedTensor], packed_bytes: int, where: str) -> None:
    end, before = 0, ""
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].offset):
        if tensor.offset % ALIGNMENT:
            raise FormatError(f"{where}: tensor {name!r} is at offset {tensor.offset}, no multiple of {ALIGNMENT}")
        if tensor.offset < end:
            raise FormatError(f"{where}: tensors {before!r} and {name!r} overlap in {PACKED_NAME}")
        end, before = tensor.offset + tensor.num_bytes, name
        if end > packed_bytes:
            raise FormatError(f"{where}: tensor {name!r} ends at byte {end}; {PACKED_NAME} has {packed_bytes}")


def _shapes(section: Mapping[str, object], where: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in section.items():
        sizes = shape if isinstance(shape, list) else []
        if not 1 <= len(sizes) <= 4 or not all(type(size) is int and 1 <= size <= _MAX_DIMENSION for size in sizes):
            raise FormatError(f"{where}: shape of {name!r} is {shorten(shape)}; it must be 1 to 4 positive integers")
        shapes[name] = tuple(sizes)
    return shapes
