"""Keeps a machine's probe between runs, as a JSON file in the user's cache folder; measures nothing."""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from subsecond.backends.probe import VALUE_OPERATORS, Fingerprint, Probe
from subsecond.core.errors import FormatError, InputError
from subsecond.formats.fields import read_field, shorten
from subsecond.formats.json_file import read_json_object
from subsecond.formats.whole_file import write_whole
from subsecond.models.store import home

VERSION = 2
LEAST_DIVISOR = 1e-6  # of what times are divided by: far below any figure, and no time becomes infinite
HOW_TO_RENEW = "`subsecond doctor --measure` writes it anew"

T = TypeVar("T")


def probe_path(fingerprint: Fingerprint) -> Path:
    """Where the probe of that fingerprint lies, which need not exist; a shared folder may hold those of many."""
    digest = hashlib.sha256(json.dumps(_plain(fingerprint), sort_keys=True).encode()).hexdigest()
    return home() / "probes" / f"{fingerprint.isa}-{fingerprint.num_threads}-{digest[:16]}.json"


def load_probe(fingerprint: Fingerprint) -> Probe | None:
    """The stored probe of that fingerprint; None when there is none.

    Raises:
        FormatError: the file is damaged, or holds the probe of another machine or build.
    """
    path = probe_path(fingerprint)
    if not path.exists():
        return None
    try:
        content = read_json_object(path)
    except (FormatError, InputError) as error:
        raise FormatError(f"{error}; {HOW_TO_RENEW}") from error
    probe = parse_probe(content, str(path))
    if probe.fingerprint != fingerprint:
        differing = [
            field.name
            for field in fields(Fingerprint)
            if getattr(probe.fingerprint, field.name) != getattr(fingerprint, field.name)
        ]
        raise FormatError(f"{path} was measured elsewhere: {', '.join(differing)} differ; {HOW_TO_RENEW}")
    return probe


def save_probe(probe: Probe) -> Path:
    """Write the probe, as a whole or not at all, and return its path."""
    path = probe_path(probe.fingerprint)
    write_whole(path, json.dumps(probe_json(probe), indent=1, allow_nan=False).encode())
    return path


def probe_json(probe: Probe) -> dict[str, Any]:
    """The object that `parse_probe` reads back."""
    return {"probe_version": VERSION, **_plain(probe)}


def parse_probe(content: Mapping[str, object], where: str) -> Probe:
    """The probe in a JSON object, every field checked; FormatErrors say what is wrong and how to get a new file."""
    try:
        version = read_field(content, "probe_version", int, where)
        if version != VERSION:
            raise FormatError(f"{where}: probe version {version}; this program reads version {VERSION}")
        probe = _read(Probe, {key: value for key, value in content.items() if key != "probe_version"}, where)
        _check(probe, where)
    except FormatError as error:
        raise FormatError(f"{error}; {HOW_TO_RENEW}") from None
    return probe


def _plain(value: Any) -> Any:
    """Dataclasses and maps as objects, tuples as lists."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _read(hint: type[T], given: object, where: str) -> T:
    """A value of the annotated type from parsed JSON: dataclasses, tuples and maps of such, texts and numbers."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    value: Any
    if is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        if not isinstance(given, Mapping) or set(given) != set(hints):
            names = sorted(map(str, given)) if isinstance(given, Mapping) else given
            raise FormatError(f"{where}: is {shorten(names)}; it must be an object with {', '.join(hints)}")
        value = hint(**{name: _read(kind, given[name], f"{where}, {name}") for name, kind in hints.items()})
    elif origin is tuple:
        if not isinstance(given, list | tuple):
            raise FormatError(f"{where}: is {shorten(given)}; it must be a list")
        value = tuple(_read(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(given))
    elif origin is not None:
        if not isinstance(given, Mapping):
            raise FormatError(f"{where}: is {shorten(given)}; it must be an object")
        value = types.MappingProxyType(
            {str(key): _read(arguments[1], item, f"{where}, {shorten(key)}") for key, item in given.items()}
        )
    else:
        value = read_field({"value": given}, "value", hint, where)  # type: ignore[type-var]
        if not isinstance(value, str) and not 0 <= value < 2**62:
            raise FormatError(f"{where}: is {shorten(value)}; it must be a number from 0")
    return typing.cast("T", value)


def _check(probe: Probe, where: str) -> None:
    """What the types do not say: what a prediction divides by is positive, and curves ascend."""
    curves = [
        (curve.rows, curve.seconds) for curve in (probe.activation_s, *(s.weight_s for s in probe.linears.values()))
    ]
    curves += [(speed.stream.num_bytes, speed.stream.shares) for speed in probe.linears.values()]
    for axis, values in curves:
        if not axis or len(axis) != len(values) or any(a >= b for a, b in pairwise((0, *axis))):
            raise FormatError(f"{where}: {shorten(axis)} must ascend from 1, with a value for each")
    sizes = [(rate.num_threads, rate.thread_bytes) for rate in probe.read_rates]
    if not sizes or sorted(set(sizes)) != sizes or min(min(sizes)) < 1:
        raise FormatError(f"{where}: read_rates must ascend by threads and bytes")
    num_threads = probe.fingerprint.num_threads
    if not {1, num_threads}.issubset(count for count, _ in sizes):
        raise FormatError(f"{where}: read_rates must have those of one thread and of {num_threads}")
    if not probe.linears or not probe.attention.speeds:
        raise FormatError(f"{where}: linears and the speeds of attention must have entries")
    if set(probe.values) != set(VALUE_OPERATORS):
        raise FormatError(f"{where}: values are of {shorten(sorted(probe.values))}; they must be of {VALUE_OPERATORS}")
    speeds = probe.linears.values()
    stream_shares = [share for speed in speeds for share in speed.stream.shares]
    divisors = {
        "bytes_s": min(rate.bytes_s for rate in probe.read_rates),
        "weight_bytes": min(speed.weight_bytes for speed in speeds),
        "stream_share": min(stream_shares),
        "head_dim": min(speed.head_dim for speed in probe.attention.speeds),
        "group": min(speed.group for speed in probe.attention.speeds),
    }
    for name, value in divisors.items():
        if value < LEAST_DIVISOR:
            raise FormatError(f"{where}: {name} is {value:g}; it must be at least {LEAST_DIVISOR:g}")
    shares = {
        "stream_share": max(stream_shares),
        "overlap": max(probe.attention.overlap, *(speed.overlap for speed in speeds)),
        "head_share": probe.attention.head_share,
        "rest_share": probe.attention.rest_share,
    }
    for name, value in shares.items():
        if value > 1:
            raise FormatError(f"{where}: {name} is {value:g}; it must be at most 1")
