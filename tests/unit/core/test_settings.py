"""Settings: what is declared once decides validation, flags and documents."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from subsecond.core.errors import InputError
from subsecond.core.settings import add_arguments, from_arguments, setting, settings_of, validate


@dataclass(frozen=True, slots=True)
class Oven:
    heat: float = setting(20.0, "warmth in %", minimum=0, is_minimum_excluded=True, maximum=300)
    shelf: int | None = setting(None, "which shelf", minimum=1, maximum=5)
    mode: str = setting("grill", "how it heats", choices=("grill", "fan"))
    alarms: tuple[int, ...] = setting((), "minutes", minimum=0)
    names: tuple[str, ...] = setting((), "dishes")
    offsets: Mapping[int, float] = setting({}, "correction by shelf", minimum=-5, maximum=5)
    has_light: bool = setting(False, "light")
    serial: str = "not a setting"

    def __post_init__(self) -> None:
        validate(self)


def parsed(*arguments: str) -> Oven:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_arguments(parser, Oven)
    return from_arguments(Oven, parser.parse_args(arguments))


def test_values_are_brought_to_their_declared_type() -> None:
    oven = Oven(heat=200, alarms=[1, np.int64(2)], names="bread", offsets={1: 2})  # type: ignore[arg-type]
    assert (oven.heat, oven.alarms, oven.names, oven.offsets) == (200.0, (1, 2), ("bread",), {1: 2.0})
    assert isinstance(oven.heat, float)
    assert [type(entry) for entry in oven.alarms] == [int, int]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heat": 0}, r"heat=0 is not allowed; give a number above 0 up to 300"),
        ({"heat": 300.5}, r"heat=300.5"),
        ({"heat": float("nan")}, r"heat=nan"),
        ({"heat": "warm"}, r"heat='warm'"),
        ({"heat": None}, r"heat=None"),
        ({"heat": True}, r"heat=True"),
        ({"shelf": 6}, r"shelf=6 is not allowed; give a whole number from 1 up to 5 or None"),
        ({"shelf": 1.0}, r"shelf=1.0"),
        ({"shelf": True}, r"shelf=True"),
        ({"mode": "steam"}, r"mode='steam' is not allowed; give one of grill, fan"),
        ({"alarms": [-1]}, r"alarms=\[-1\] is not allowed; give a list of whole numbers from 0"),
        ({"alarms": ["1"]}, r"alarms="),
        ({"names": [1]}, r"names="),
        ({"offsets": {1: 6}}, r"offsets="),
        ({"offsets": {-1: 1}}, r"offsets="),
        ({"offsets": [1]}, r"offsets="),
        ({"has_light": 1}, r"has_light=1 is not allowed; give true or false"),
    ],
)
def test_what_is_not_allowed_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Oven(**values)


def test_a_long_value_is_shortened_in_the_message() -> None:
    with pytest.raises(InputError) as caught:
        Oven(mode="x" * 10_000)
    assert len(str(caught.value)) < 200


def test_flags_follow_the_fields() -> None:
    oven = parsed(
        *("--heat", "180", "--shelf", "2", "--mode", "fan", "--alarms", "3", "--alarms", "4", "--names", "pie"),
        *("--offsets", "1=2.5", "--offsets", "2=-1", "--has-light"),
    )
    assert oven == Oven(180.0, 2, "fan", (3, 4), ("pie",), {1: 2.5, 2: -1.0}, True)


def test_flags_that_are_not_given_keep_the_defaults() -> None:
    assert parsed() == Oven()
    assert parsed("--no-has-light") == Oven()


@pytest.mark.parametrize("arguments", [["--heat", "warm"], ["--offsets", "1"], ["--mode", "steam"]])
def test_a_flag_with_a_wrong_type_is_refused_by_the_parser(arguments: list[str]) -> None:
    with pytest.raises(argparse.ArgumentError):
        parsed(*arguments)


def test_a_flag_out_of_range_is_an_input_error() -> None:
    with pytest.raises(InputError, match="--heat 999"):
        parsed("--heat", "999")


def test_documentation_rows_follow_the_fields() -> None:
    rows = {item.name: item for item in settings_of(Oven)}
    assert list(rows) == ["heat", "shelf", "mode", "alarms", "names", "offsets", "has_light"]
    assert (rows["heat"].flag, rows["heat"].default, rows["heat"].doc) == ("--heat", 20.0, "warmth in %")
    assert rows["offsets"].default == {}
    assert rows["shelf"].is_optional
    assert not rows["heat"].is_optional


def test_help_can_be_printed() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser, Oven)
    text = parser.format_help()
    assert "warmth in %; default 20" in text
    assert "--has-light, --no-has-light" in text
