"""Recipes: what is done to a model, stage by stage, read from TOML and checked before any work; runs nothing."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

from subsecond.compress.calibration import CalibrationSettings
from subsecond.core.errors import InputError
from subsecond.core.settings import settings_of
from subsecond.formats.fields import shorten

VERSION = 1
RECIPES = Path(__file__).parent / "recipes"
MAX_RECIPE_BYTES = 2**20
MAX_STAGES = 32
_TOP_KEYS = ("version", "description", "calibration", "stage")

# Kind of stage -> module that has its `Settings` and its `run(job, settings)`; in the order in which kinds may follow:
# what removes weights comes before what rounds them.
STAGES: Mapping[str, str] = {
    "rotate": "stage_rotate",
    "trim-vocabulary": "stage_trim_vocabulary",
    "prune-depth": "stage_prune_depth",
    "prune-heads": "stage_prune_heads",
    "prune-width": "stage_prune_width",
    "sparsify": "stage_sparsify",
    "mixed": "stage_mixed",
    "quantize": "stage_quantize",
}
_ROUNDING = ("mixed", "quantize")
_FITTING = ("prune-width", "prune-heads", "prune-depth")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: its kind and its settings, an instance of the kind's `Settings`."""

    kind: str
    settings: Any

    @property
    def needs_calibration(self) -> bool:
        """Whether it learns from text; stages that never do say so by a function of this name in their module."""
        rule = getattr(stage_module(self.kind), "needs_calibration", None)
        return rule is None or bool(rule(self.settings))

    def to_json(self) -> dict[str, Any]:
        """Kind and settings, as JSON holds them."""
        return {"kind": self.kind, **asdict(self.settings)}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is done to a model, in order; `text` is the TOML that says so."""

    name: str
    description: str
    calibration: CalibrationSettings
    stages: tuple[Stage, ...]
    text: str

    @property
    def needs_calibration(self) -> bool:
        """Whether any stage learns from text."""
        return any(stage.needs_calibration for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """All that decides the result, as JSON holds it."""
        stages = [stage.to_json() for stage in self.stages]
        return {"version": VERSION, "calibration": asdict(self.calibration), "stages": stages}


def built_in_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with the package."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.toml")))


def find_recipe(name_or_path: str) -> Recipe:
    """A built-in recipe by name, or that of a file; InputError for one that is not there or not valid."""
    if name_or_path in built_in_recipes():
        path = RECIPES / f"{name_or_path}.toml"
    else:
        path = Path(name_or_path).expanduser()
        if not path.is_file():
            raise InputError(
                f"there is no recipe {name_or_path!r}; give one of {', '.join(built_in_recipes())}, or the path of a "
                "TOML file"
            )
    if path.stat().st_size > MAX_RECIPE_BYTES:
        raise InputError(f"{path} has more than {MAX_RECIPE_BYTES} bytes; that is no recipe")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8: {error}") from error
    return read_recipe(text, path.stem, str(path))


def read_recipe(text: str, name: str, where: str) -> Recipe:
    """The recipe that TOML says; InputError that names what is not allowed, and what is."""
    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"{where} is not valid TOML: {error}") from error
    unknown = [key for key in content if key not in _TOP_KEYS]
    if unknown:
        raise InputError(f"{where}: {unknown[0]!r} is not known in a recipe; known are {', '.join(_TOP_KEYS)}")
    if content.get("version") != VERSION:
        raise InputError(f"{where}: version is {shorten(content.get('version'))}; this program reads version {VERSION}")
    description = content.get("description", "")
    if not isinstance(description, str):
        raise InputError(f"{where}: description is {shorten(description)}; it must be text")
    calibration = _settings(CalibrationSettings, content.get("calibration", {}), f"{where}, [calibration]")
    given = content.get("stage", [])
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_STAGES:
        raise InputError(f"{where}: a recipe has 1 to {MAX_STAGES} stages, each under [[stage]]")
    stages = tuple(_stage(each, f"{where}, stage {index + 1}") for index, each in enumerate(given))
    _check_order(stages, where)
    return Recipe(name, description, calibration, stages, text)


def stage_module(kind: str) -> Any:
    """The module of a kind of stage, with `Settings` and `run`."""
    return import_module(f"subsecond.compress.{STAGES[kind]}")


def _stage(given: object, where: str) -> Stage:
    if not isinstance(given, Mapping) or given.get("kind") not in STAGES:
        kind = given.get("kind") if isinstance(given, Mapping) else given
        raise InputError(f"{where}: kind is {shorten(kind)}; known are {', '.join(STAGES)}")
    rest = {key: value for key, value in given.items() if key != "kind"}
    return Stage(given["kind"], _settings(stage_module(given["kind"]).Settings, rest, f"{where} ({given['kind']})"))


def _settings(cls: Any, given: object, where: str) -> Any:
    if not isinstance(given, Mapping):
        raise InputError(f"{where} is {shorten(given)}; it must be a table of settings")
    known = {each.name: each for each in settings_of(cls)}
    values = {key.replace("-", "_"): value for key, value in given.items()}
    for name in values:
        if name not in known:
            raise InputError(f"{where}: {name!r} is not known; known are {', '.join(known) or 'no settings'}")
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def _check_order(stages: tuple[Stage, ...], where: str) -> None:
    """InputError for stages whose result a later one would undo."""
    for earlier, later in combinations(stages, 2):
        if earlier.kind in _ROUNDING:
            raise InputError(
                f"{where}: {later.kind} after {earlier.kind} would work on weights that are rounded already and round "
                f"them again; put {earlier.kind} last"
            )
        if earlier.kind == "sparsify" and later.kind in _FITTING:
            raise InputError(
                f"{where}: {later.kind} after sparsify fits weights anew, those that are zero too; put sparsify after "
                f"{later.kind}"
            )
