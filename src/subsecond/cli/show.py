"""`subsecond show`: what a model is, and its graph after any of the passes."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING

from subsecond.cli.output import MODEL_HELP, Subparsers, add_command, print_json, size_text, table
from subsecond.core.errors import UnsupportedError

if TYPE_CHECKING:
    from subsecond.models.checkpoint import Checkpoint

WeightTypes = dict[str, tuple[str, int]]


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(subparsers, "show", "show what a model is made of")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--graph", action="store_true", help="print the operators of its graph, after all passes")
    parser.add_argument(
        "--after", metavar="PASS", help="with --graph: stop after this pass; none shows the graph as it was built"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the configuration and weights, or the graph."""
    from subsecond.models.checkpoint import open_checkpoint
    from subsecond.models.store import resolve

    path = resolve(args.model)
    checkpoint = open_checkpoint(path)
    types = _weight_types(checkpoint)
    description = {
        "path": str(path),
        "config": checkpoint.config.to_json(),
        "num_parameters": sum(_num_elements(shape) for shape in checkpoint.shapes.values()),
        "weight_bytes": sum(num_bytes for _, num_bytes in types.values()) if types else None,
        "weight_types": dict(Counter(name for name, _ in types.values()).most_common()),
        "has_artifact": checkpoint.artifact is not None,
        "has_chat_template": checkpoint.has_chat_template,
    }
    graph = _graph_text(checkpoint, types, args.after) if args.graph or args.after is not None else None
    if args.json:
        print_json(description if graph is None else {**description, "graph": graph})
    elif graph is not None:
        print(graph)
    else:
        print(_description_text(description))
    return 0


def _graph_text(checkpoint: Checkpoint, types: WeightTypes, after: str | None) -> str:
    from subsecond.graph.passes.pipeline import optimize, passes_until
    from subsecond.graph.text import graph_text

    graph = checkpoint.graph()
    return graph_text(optimize(graph) if after is None else passes_until(graph, after), types)


def _weight_types(checkpoint: Checkpoint) -> WeightTypes:
    """Stored type and bytes of every weight; nothing for an artifact whose model file is not at hand."""
    try:
        weights = checkpoint.weights
    except UnsupportedError:
        return {}
    return {name: (weights.type_of(name).name, weights.raw(name).nbytes) for name in weights.shapes}


def _description_text(description: dict[str, object]) -> str:
    rows = []
    for name, value in description.items():
        if isinstance(value, dict):
            rows += [(f"{name}.{key}", str(item)) for key, item in value.items()]
        elif name.endswith("_bytes") and isinstance(value, int):
            rows.append((name, size_text(value)))
        else:
            rows.append((name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)))
    return table(rows)


def _num_elements(shape: tuple[int, ...]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count
