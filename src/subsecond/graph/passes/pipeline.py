"""The passes in the order in which a plan is made; what each does is written in its own file."""

from __future__ import annotations

from collections.abc import Callable

from subsecond.core.errors import InputError
from subsecond.graph.graph import Graph
from subsecond.graph.passes.fuse_epilogues import fuse_epilogues
from subsecond.graph.passes.fuse_norms import fuse_norms
from subsecond.graph.passes.fuse_rope import fuse_rope
from subsecond.graph.passes.merge_linears import merge_linears

Pass = Callable[[Graph], Graph]

# Merging comes first: a norm is folded into one linear then, and gate and up have to be one linear to be gated.
PASSES: tuple[tuple[str, Pass], ...] = (
    ("merge_linears", merge_linears),
    ("fuse_norms", fuse_norms),
    ("fuse_epilogues", fuse_epilogues),
    ("fuse_rope", fuse_rope),
)


def optimize(graph: Graph) -> Graph:
    """`graph` after all passes."""
    for _, run in PASSES:
        graph = run(graph)
    return graph


def passes_until(graph: Graph, name: str) -> Graph:
    """`graph` after the passes up to and with `name`; "none" runs none, an unknown name is an InputError."""
    names = [known for known, _ in PASSES]
    if name == "none":
        return graph
    if name not in names:
        raise InputError(f"there is no pass {name!r}; passes in order: none, {', '.join(names)}")
    for _, run in PASSES[: names.index(name) + 1]:
        graph = run(graph)
    return graph
