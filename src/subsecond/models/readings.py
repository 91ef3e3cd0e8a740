"""How a checkpoint says that its weights are to be executed, by name; which kernels do so is not known here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from subsecond.core.errors import FormatError
from subsecond.formats.fields import read_mapping, shorten

READINGS = ("stored", "int8", "int4", "nested8", "nested4", "sparse")
"""Ways to execute a matrix. "stored": the blocks of the file. "int8", "int4": channel formats, made when the weight is
loaded, with activations of eight bits. "nested8", "nested4": two readings of one copy in such a format. "sparse": the
stored half precision without its zeros."""

DEFAULT_NAME = "default"
"""Stands for the linears of all layers that have no reading of their own."""

NO_READINGS: Mapping[str, str] = MappingProxyType({})
SECTION = "subsecond"  # of config.json
_FIELD = "readings"
_MAX_SHOWN = 4


def parse_readings(
    content: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]], where: str
) -> Mapping[str, str]:
    """The field "readings" of `content`: weight name, or "default", to reading; empty where there is none.

    FormatError for a name that is no matrix of `shapes`, or for an unknown reading; `where` names `content` for it.
    """
    if _FIELD not in content:
        return NO_READINGS
    found = read_mapping(content, _FIELD, where)
    unknown = [name for name in found if name != DEFAULT_NAME and len(shapes.get(name, ())) < 2]
    if unknown:
        names = ", ".join(map(shorten, unknown[:_MAX_SHOWN])) + (", ..." if len(unknown) > _MAX_SHOWN else "")
        example = next((name for name, shape in shapes.items() if len(shape) == 2), None)
        allowed = f"the matrices of this model, such as {example!r}, and {DEFAULT_NAME!r} for the linears of all layers"
        raise FormatError(f"{where}: readings of {names}; allowed are {allowed}")
    for name, reading in found.items():
        if reading not in READINGS:
            given = f"the reading of {name!r} is {shorten(reading)}"
            raise FormatError(f"{where}: {given}; give one of {', '.join(READINGS)}")
    return MappingProxyType({name: str(reading) for name, reading in found.items()})


def readings_of_config(
    content: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]], where: str
) -> Mapping[str, str]:
    """The readings in the section "subsecond" of a config.json; errors as of `parse_readings`."""
    if SECTION not in content:
        return NO_READINGS
    return parse_readings(read_mapping(content, SECTION, where), shapes, f"{where}, {SECTION}")
