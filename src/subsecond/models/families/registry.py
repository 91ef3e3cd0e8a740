"""Finds the family of a model by its architecture name; a new family is one file and one line here."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import ModuleType

from subsecond.core.errors import UnsupportedError
from subsecond.formats.fields import shorten
from subsecond.graph.graph import Graph
from subsecond.models.config import ModelConfig
from subsecond.models.families import bert, gemma2, gemma3, gpt2, llama, olmo2, phi3, qwen2, qwen3, smollm3
from subsecond.models.families.family import Family
from subsecond.models.families.transformer import build_transformer

_MODULES = (llama, qwen2, qwen3, smollm3, gemma2, gemma3, phi3, olmo2, gpt2, bert)
FAMILIES: tuple[Family, ...] = tuple(module.FAMILY for module in _MODULES)
_BY_NAME: Mapping[str, Family] = {name: family for family in FAMILIES for name in family.names}
_BY_HF_TYPE: Mapping[str, Family] = {each.name: family for family in FAMILIES for each in family.hf_types}
_NAME_OF: Mapping[str, str] = {
    **{each.name: each.architecture or family.names[0] for family in FAMILIES for each in family.hf_types},
    **{name: name for name in _BY_NAME},
}
"""Architecture names by what a file may call them, a `model_type` included."""


def find_family(name: str) -> Family:
    """The family of a GGUF architecture name; UnsupportedError, with a near one that is known, for none."""
    if name not in _BY_NAME:
        raise _unknown(name, _BY_NAME, _NAME_OF)
    return _BY_NAME[name]


def find_family_by_hf_type(model_type: str) -> Family:
    """The family of a `model_type` of Hugging Face; UnsupportedError, with a near one that is known, for none."""
    if model_type not in _BY_HF_TYPE:
        raise _unknown(model_type, _BY_HF_TYPE, {each: each for each in _BY_HF_TYPE})
    return _BY_HF_TYPE[model_type]


def family_module(family: Family) -> ModuleType:
    """The module that defines a family; its docstring says what the family is."""
    return next(module for module in _MODULES if module.FAMILY is family)


def build_graph(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
    """The unfused graph of a model whose weights have these shapes.

    A tensor that is missing or of another shape is a FormatError. One that the family does not read is an
    UnsupportedError: leaving it out would compute another model.
    """
    if config.window and not config.window_layers:
        raise UnsupportedError(f"family {config.family!r} has no rule which layers the window of this model is for")
    graph, ignored = build_transformer(config, shapes, find_family(config.family).form)
    unread = sorted(set(shapes) - set(graph.weights) - ignored)
    if unread:
        some = ", ".join(unread[:4]) + (", ..." if len(unread) > 4 else "")
        raise UnsupportedError(
            f"the model file has {len(unread)} tensors that family {config.family!r} does not use ({some}); "
            "this variant of the family is not supported"
        )
    return graph


def _unknown(name: str, known: Iterable[str], name_of: Mapping[str, str]) -> UnsupportedError:
    close = difflib.get_close_matches(name[:100].lower(), sorted(name_of), n=1, cutoff=0.5)
    hint = f"; the nearest known one is {name_of[close[0]]!r}" if close else ""
    return UnsupportedError(
        f"model architecture {shorten(name)} is not supported{hint}. Supported: {', '.join(sorted(known))}"
    )
