"""Finds the family of a model by its architecture name; a new family is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from subsecond.core.errors import UnsupportedError
from subsecond.graph.graph import Graph
from subsecond.models.config import ModelConfig
from subsecond.models.families import llama, qwen2

FamilyBuilder = Callable[[ModelConfig, Mapping[str, tuple[int, ...]]], Graph]

FAMILIES: Mapping[str, FamilyBuilder] = {"llama": llama.build, "qwen2": qwen2.build}


def family_builder(name: str) -> FamilyBuilder:
    """The function that builds graphs of family `name`; UnsupportedError when there is none."""
    if name not in FAMILIES:
        raise UnsupportedError(f"model family {name!r} is not supported; supported: {', '.join(sorted(FAMILIES))}")
    return FAMILIES[name]


def build_graph(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> Graph:
    """The unfused graph of a model whose weights have these shapes.

    A tensor that is missing or of another shape is a FormatError. One that the family does not read is an
    UnsupportedError: leaving it out would compute another model.
    """
    graph = family_builder(config.family)(config, shapes)
    unread = sorted(set(shapes) - set(graph.weights))
    if unread:
        some = ", ".join(unread[:4]) + (", ..." if len(unread) > 4 else "")
        raise UnsupportedError(
            f"the model file has {len(unread)} tensors that family {config.family!r} does not use ({some}); "
            "this variant of the family is not supported"
        )
    return graph
