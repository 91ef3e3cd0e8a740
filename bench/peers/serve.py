"""Starts the server of an engine for a model, which it first converts to what the engine reads.

Run from the repository: python -m bench.peers.serve ENGINE[:WEIGHTS] MODEL --port N [--threads N] [--streams N]
                         [--context-tokens N]
The process becomes the server; /health (ours: /health/ready) answers once it is ready. `subsecond bench --against`
starts peers by this program, which `make peers` has made known to it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from bench.engines import ENGINES, Row
from bench.models import ROOT
from bench.serving.commands import Capacity, server_command
from bench.timing import PeerError


def main() -> None:
    """Prepare the model, then become the server."""
    parser = argparse.ArgumentParser(description="Serve a model by an engine that ours is compared with.")
    parser.add_argument("engine")
    parser.add_argument("model", type=Path)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--streams", type=int, default=1, help="most requests at once")
    parser.add_argument("--context-tokens", type=int, default=4096, help="most tokens of one request")
    options = parser.parse_args()
    try:
        row = Row.parse(options.engine)
        path = ENGINES[row.engine].prepare(options.model.absolute(), row.weights)
        capacity = Capacity(options.threads, options.streams, options.context_tokens)
        command = server_command(row, path, capacity, options.port)
    except (PeerError, ValueError) as error:
        sys.exit(str(error))
    os.chdir(ROOT)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
