"""Settings declared once, as dataclass fields: their validation, command-line flags and documentation rows follow."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from subsecond.core.errors import InputError

if TYPE_CHECKING:
    import argparse

Settings = TypeVar("Settings")
Kind = Literal["bool", "int", "float", "str", "list of int", "list of str", "map of int to float"]

_KINDS: dict[Any, Kind] = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    tuple[int, ...]: "list of int",
    tuple[str, ...]: "list of str",
    Mapping[int, float]: "map of int to float",
}
_WORDS: dict[Kind, str] = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "list of int": "a list of whole numbers",
    "list of str": "a list of texts",
    "map of int to float": "a map of token ids to numbers",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One declared setting. `minimum` and `maximum` bound numbers and the numbers inside lists and maps."""

    name: str
    kind: Kind
    is_optional: bool
    default: Any
    doc: str
    minimum: float | None
    maximum: float | None
    is_minimum_excluded: bool
    choices: tuple[str, ...]

    @property
    def flag(self) -> str:
        """The command-line flag, for example `--top-k`."""
        return "--" + self.name.replace("_", "-")

    @property
    def allowed(self) -> str:
        """What may be given, in words, for messages and documents."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        text = _WORDS[self.kind]
        if self.minimum is not None and self.is_minimum_excluded:
            text += f" above {self.minimum:g}"
        elif self.minimum is not None:
            text += f" from {self.minimum:g}"
        if self.maximum is not None:
            text += f" up to {_number_text(self.maximum)}"
        return text


def setting(
    default: Any,
    doc: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    is_minimum_excluded: bool = False,
    choices: tuple[str, ...] = (),
) -> Any:
    """Declare a field of a settings dataclass; `doc` is its help text, the rest what `validate` allows."""
    metadata = {
        "doc": doc,
        "min": minimum,
        "max": maximum,
        "is_minimum_excluded": is_minimum_excluded,
        "choices": choices,
    }
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(cls: type) -> tuple[Setting, ...]:
    """Return the declared settings of a dataclass in their order; fields made without `setting` are left out."""
    hints = typing.get_type_hints(cls)
    found = []
    for field in dataclasses.fields(cls):
        if "doc" not in field.metadata:
            continue
        kind, is_optional = _kind_of(hints[field.name])
        is_made = field.default is dataclasses.MISSING
        default = field.default_factory() if is_made and callable(field.default_factory) else field.default
        found.append(
            Setting(
                name=field.name,
                kind=kind,
                is_optional=is_optional,
                default=default,
                doc=field.metadata["doc"],
                minimum=field.metadata["min"],
                maximum=field.metadata["max"],
                is_minimum_excluded=field.metadata["is_minimum_excluded"],
                choices=field.metadata["choices"],
            )
        )
    return tuple(found)


def validate(instance: Any) -> None:
    """Bring every setting of a frozen dataclass to its declared type; to be called from its `__post_init__`.

    A whole number may stand for a float, one text or number for a list of one, any iterable for a list.

    Raises:
        InputError: names the first setting that is not allowed, its value and what is allowed.
    """
    for item in _declared(type(instance)):
        value = getattr(instance, item.name)
        object.__setattr__(instance, item.name, checked(item, value))


def checked(item: Setting, value: Any) -> Any:
    """Return the value in the setting's declared type, or raise InputError."""
    if value is None and item.is_optional:
        return None
    try:
        result = _convert(item.kind, value)
    except (TypeError, ValueError, AttributeError):
        raise _refusal(item, value) from None
    if item.kind in ("int", "float"):
        numbers: Iterable[float] = (result,)
    elif item.kind == "list of int":
        numbers = result
    elif item.kind == "map of int to float":
        numbers = result.values()
        if any(key < 0 for key in result):
            raise _refusal(item, value)
    else:
        numbers = ()
    if not all(_is_inside(item, number) for number in numbers) or (item.choices and result not in item.choices):
        raise _refusal(item, value)
    return result


def add_arguments(parser: argparse.ArgumentParser | argparse._ArgumentGroup, cls: type) -> None:
    """Add one flag for every setting; a flag that is not given leaves no trace in the namespace's values but None."""
    for item in _declared(cls):
        default = "" if item.default in (None, (), {}) else f"; default {_number_text(item.default)}"
        options: dict[str, Any] = {"dest": item.name, "default": None}
        if item.kind == "bool":
            import argparse

            options |= {"action": argparse.BooleanOptionalAction}
            default = ""
        elif item.choices:
            options |= {"choices": item.choices}
        else:
            options |= {"type": _text_parser(item), "metavar": _METAVARS[item.kind]}
        if item.kind.startswith(("list", "map")):
            options |= {"action": "extend" if item.kind == "list of int" else "append"}
            default = "; may be given several times"
        parser.add_argument(item.flag, help=f"{item.doc}{default}".replace("%", "%%"), **options)


def from_arguments(cls: type[Settings], namespace: argparse.Namespace) -> Settings:
    """Build the dataclass from parsed flags; what was not given keeps its default.

    Raises:
        InputError: a value is not allowed.
    """
    given = {item.name: getattr(namespace, item.name, None) for item in _declared(cls)}
    values = {name: value for name, value in given.items() if value is not None}
    for item in _declared(cls):
        if item.name not in values:
            continue
        if item.kind == "map of int to float":
            values[item.name] = dict(values[item.name])
        try:
            checked(item, values[item.name])
        except InputError:
            message = f"{item.flag} {_shown(getattr(namespace, item.name))} is not allowed; give {item.allowed}"
            raise InputError(message) from None
    return cls(**values)


_METAVARS: dict[Kind, str] = {
    "bool": "",
    "int": "N",
    "float": "X",
    "str": "TEXT",
    "list of int": "ID",
    "list of str": "TEXT",
    "map of int to float": "ID=X",
}

_DECLARED: dict[type, tuple[Setting, ...]] = {}


def _declared(cls: type) -> tuple[Setting, ...]:
    """settings_of, remembered: resolving annotations costs too much for every request."""
    if cls not in _DECLARED:
        _DECLARED[cls] = settings_of(cls)
    return _DECLARED[cls]


def _kind_of(hint: Any) -> tuple[Kind, bool]:
    """Return the kind of an annotation and whether None is allowed too."""
    is_optional = False
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        assert len(members) == 1, f"a setting has one type, or one type and None; got {hint}"
        hint, is_optional = members[0], True
    if typing.get_origin(hint) is Literal:
        hint = str
    assert hint in _KINDS, f"a setting cannot have the type {hint}"
    return _KINDS[hint], is_optional


def _convert(kind: Kind, value: Any) -> Any:
    """Return the value in the type of its kind; raises TypeError, ValueError or AttributeError if it has another."""
    if kind == "bool":
        return _exactly(bool, value)
    if kind == "int":
        return _whole(value)
    if kind == "float":
        return _real(value)
    if kind == "str":
        return _exactly(str, value)
    if kind == "list of int":
        return tuple(_whole(entry) for entry in ((value,) if isinstance(value, int) else value))
    if kind == "list of str":
        return tuple(_exactly(str, entry) for entry in ((value,) if isinstance(value, str) else value))
    return {_whole(key): _real(number) for key, number in value.items()}


def _exactly(wanted: type, value: Any) -> Any:
    if not isinstance(value, wanted):
        raise TypeError
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError
    return int(value.__index__())


def _real(value: Any) -> float:
    if isinstance(value, bool | str | bytes):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _is_inside(item: Setting, number: float) -> bool:
    if item.minimum is not None and (number < item.minimum or (item.is_minimum_excluded and number == item.minimum)):
        return False
    return item.maximum is None or number <= item.maximum


def _refusal(item: Setting, value: Any) -> InputError:
    none = " or None" if item.is_optional else ""
    return InputError(f"{item.name}={_shown(value)} is not allowed; give {item.allowed}{none}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "..."


def _number_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text_parser(item: Setting) -> Any:
    """Return what argparse calls with a flag's text; its name appears in argparse's own message."""

    def pair(text: str) -> tuple[int, float]:
        key, _, number = text.partition("=")
        try:
            return int(key), float(number)
        except ValueError:
            import argparse

            raise argparse.ArgumentTypeError(f"expected ID=X, for example 42=-5; got {text[:100]!r}") from None

    def whole_numbers(text: str) -> list[int]:
        try:
            return [int(part) for part in text.split(",")]
        except ValueError:
            import argparse

            raise argparse.ArgumentTypeError(
                f"expected a whole number, or several with commas between; got {text[:100]!r}"
            ) from None

    parsers: dict[Kind, Any] = {
        "int": int,
        "float": float,
        "str": str,
        "list of int": whole_numbers,
        "list of str": str,
        "map of int to float": pair,
    }
    return parsers[item.kind]
