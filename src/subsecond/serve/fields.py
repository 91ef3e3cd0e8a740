"""Fields of request bodies: settings under the names an API gives them, parts whose type only they themselves say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sized
from functools import cache
from typing import Any, NoReturn, TypeVar

import msgspec

from subsecond.core.errors import InputError
from subsecond.core.settings import Setting, checked, settings_of
from subsecond.engine.request import SamplingParams
from subsecond.serve.body import decode
from subsecond.serve.errors import FieldError

T = TypeVar("T")
MAX_STOPS = 64
MAX_STOP_CHARS = 1000


class Body(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What all bodies of requests share: no field that is not declared."""


class _Kind(msgspec.Struct):
    """The one field by which a part says what it is."""

    type: str | None = None


def kind_of_part(raw: msgspec.Raw, where: str) -> str | None:
    """Return the `type` of a part of a body; None if it does not say."""
    try:
        return decode(bytes(raw), _Kind).type
    except FieldError as error:
        raise _inside(error, where) from None


def decode_part(raw: msgspec.Raw, kind: type[T], where: str) -> T:
    """Return a part of a body as a struct; what is wrong with it is named by its place in the whole."""
    try:
        return decode(bytes(raw), kind)
    except FieldError as error:
        raise _inside(error, where) from None


def refuse(param: str, message: str) -> NoReturn:
    """Refuse a request because of one field."""
    raise FieldError(f"{param}: {message}", param=param)


def check_count(field: str, values: Sized | None, maximum: int) -> None:
    """Refuse a list, before anything is done with its entries, that has more of them than anybody needs."""
    if values is not None and len(values) > maximum:
        refuse(field, f"{len(values)} entries are too many; at most {maximum} are allowed")


def refuse_given(fields: Mapping[str, object], message: str) -> None:
    """Refuse the first of the fields that is given, that is, neither None nor empty nor False."""
    for name, value in fields.items():
        if value not in (None, False, "", [], {}):
            refuse(name, message)


def sampling_params(fields: Mapping[str, object], names: Mapping[str, str] | None = None) -> SamplingParams:
    """Return settings from fields of a body; a field that is None is as if it were not given.

    `names` gives the setting of each field that has another name. What is not allowed is named as the field.
    """
    names = names or {}
    settings: dict[str, Any] = {}
    for field, value in fields.items():
        if value is None:
            continue
        declared = _declared()[names.get(field, field)]
        try:
            settings[declared.name] = checked(declared, value)
        except InputError:
            raise FieldError(
                f"{field}={str(value)[:100]} is not allowed; give {declared.allowed}", param=field
            ) from None
    return SamplingParams(**settings)


def stop_texts(field: str, value: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """Return stop strings, which every piece of text is compared with and which are therefore few and short."""
    if value is None:
        return None
    stops = (value,) if isinstance(value, str) else tuple(value)
    if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        refuse(field, f"give at most {MAX_STOPS} texts of 1 to {MAX_STOP_CHARS} characters")
    return stops


def checked_deadline_ms(value: float | None) -> float | None:
    """Return the milliseconds a request may take, if they can be kept at all."""
    if value is not None and not 0 < value < float("inf"):
        refuse("deadline_ms", f"{value} is not allowed; give milliseconds above 0, or leave it out")
    return value


def checked_priority(value: int | None) -> int:
    """Return the priority of a request, 0 if it gives none."""
    if value is not None and not -(2**31) <= value < 2**31:
        refuse("priority", f"{value} is not allowed; give -2^31 to 2^31 - 1, lower ones are served first")
    return value or 0


def _inside(error: FieldError, where: str) -> FieldError:
    """The error with its place put behind the place of the part."""
    if error.param is None:
        return FieldError(f"{where}: {str(error).removeprefix('the body: ')}", param=where)
    place = f"{where}.{error.param}"
    return FieldError(str(error).replace(error.param, place, 1), param=place)


@cache
def _declared() -> dict[str, Setting]:
    return {item.name: item for item in settings_of(SamplingParams)}
