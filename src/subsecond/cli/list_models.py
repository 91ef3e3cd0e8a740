"""`subsecond list`: the models on disk, whosever store they are in, and those that can be pulled."""

from __future__ import annotations

import argparse

from subsecond.cli.output import Subparsers, add_command, print_json, size_text, table


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(subparsers, "list", "list the models on disk and those that can be pulled")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print both lists."""
    from subsecond.models import catalogue, store

    stored = store.list_models()
    stored_names = {model.name for model in stored if model.origin == store.OWN_ORIGIN}
    missing = [entry for entry in catalogue.ENTRIES if entry.name not in stored_names]
    if args.json:
        print_json(
            {
                "models": [
                    {
                        "name": model.name,
                        "origin": model.origin,
                        "path": str(model.path),
                        "file_bytes": model.file_bytes,
                        "artifact_bytes": model.artifact_bytes,
                    }
                    for model in stored
                ],
                "available": [
                    {
                        "name": entry.name,
                        "description": entry.description,
                        "licence": entry.licence,
                        "upstream": entry.upstream,
                        "needs_hub": entry.needs_hub,
                    }
                    for entry in missing
                ],
            }
        )
        return 0
    rows = [("NAME", "ORIGIN", "ON DISK", "PACKED", "DESCRIPTION")]
    for model in stored:
        known = catalogue.find(model.name)
        packed = size_text(model.artifact_bytes) if model.artifact_bytes else "-"
        rows.append((model.name, model.origin, size_text(model.file_bytes), packed, known.description if known else ""))
    for entry in missing:
        extra = " [hub]" if entry.needs_hub else ""
        rows.append((entry.name, "-", "-", "-", f"{entry.description}; {entry.licence}{extra}"))
    print(table(rows))
    if missing:
        print("\nFetch one with: subsecond pull NAME ([hub]: needs pip install 'subsecond[hub]')")
    return 0
