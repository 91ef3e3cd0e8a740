"""Speed of our server beside others on this machine under the same load, one of them computing at a time.

Run from the repository, after `make peers PEER=llama_server` and `make peers PEER=openvino`:

    python -m bench.serve_load --models MODEL.gguf,llama-3.2-1b --servers subsecond,llama.cpp,openvino --rounds 5
    python -m bench.serve_load --models llama-3.2-1b --servers subsecond,subsecond-engine --streams 32
    python -m bench.serve_load --models llama-3.2-1b --scenario long-prompt --servers subsecond --streams 1,8,31

A server is ENGINE or ENGINE:WEIGHTS as in bench.compare; NAME-engine is our engine without HTTP. All servers of a model
are loaded and warm; in a round each answers the same prompts of token ids in turn, while the others are stopped by
SIGSTOP. A stream sends its next request when the last one has been answered. The load generator's processor time is
counted apart from the server's. Tables go to standard error, one JSON object to standard output or to --output, where
it grows with every model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.compare import names_of, origin_json
from bench.engines import OURS
from bench.models import find_model, label_of
from bench.serving.comparison import compare
from bench.serving.loads import LOADS
from bench.serving.long_prompt import QUIET_S, LongPrompts, capacity_beside
from bench.serving.report import json_of, text_of
from bench.serving.servers import HttpServer, check_name, open_server
from bench.timing import PeerError
from subsecond.core.hardware import probe

DEFAULT_SERVERS = (OURS, "llama.cpp", "openvino")


def load_scenario(model: Path, options: argparse.Namespace) -> dict[str, object]:
    """Every load on every server at every number of streams."""
    loads = [LOADS[name] for name in options.workloads]
    numbers = {"threads": options.threads, "rounds": options.rounds, "each": options.requests}
    outcome = compare(options.servers, model, loads, options.streams, **numbers)
    print(text_of(outcome), file=sys.stderr, flush=True)
    return json_of(outcome)


def long_prompt_scenario(model: Path, options: argparse.Namespace) -> dict[str, object]:
    """A long prompt beside running streams, on one server after the other."""
    found: dict[str, object] = {}
    for name in options.servers:
        server = open_server(name, model, capacity_beside(max(options.streams), options.long_tokens, options.threads))
        if not isinstance(server, HttpServer):
            raise PeerError(f"{name}: the long prompt is sent over HTTP only")
        with ExitStack() as stack:
            stack.callback(server.stop)
            server.start()
            prompts = LongPrompts(server, options.rounds, options.long_tokens, options.quiet_s)
            results = []
            for num_streams in options.streams:
                results.append(server.run(prompts.measure(num_streams)))
                print(f"{name:<16} {results[-1].line()}", file=sys.stderr, flush=True)
            found[name] = [result.as_json() for result in results]
    return found


SCENARIOS: dict[str, Callable[[Path, argparse.Namespace], dict[str, object]]] = {
    "load": load_scenario,
    "long-prompt": long_prompt_scenario,
}


def main() -> None:
    """Measure and print."""
    options = parse_options()
    settings = {
        name: getattr(options, name) for name in ("servers", "streams", "workloads", "scenario", "rounds", "requests")
    }
    result: dict[str, Any] = origin_json(options.threads) | settings | {"models": {}}
    for name in options.models:
        print(f"\n{label_of(name)}, {options.threads} threads, medians of {options.rounds} rounds", file=sys.stderr)
        result["models"][label_of(name)] = SCENARIOS[options.scenario](find_model(name), options)
        if options.output is not None:
            options.output.write_text(json.dumps(result), encoding="utf-8")
    if options.output is None:
        print(json.dumps(result))


def counts_of(text: str) -> list[int]:
    """Numbers in a list with commas."""
    return [int(part) for part in text.split(",")]


def parse_options() -> argparse.Namespace:
    """Command line; lists have commas."""
    parser = argparse.ArgumentParser(description="Compare servers under load on this machine.")
    parser.add_argument("--models", type=names_of, required=True, help="paths, pulled models, shapes of random weights")
    parser.add_argument("--servers", type=names_of, default=list(DEFAULT_SERVERS))
    parser.add_argument("--streams", type=counts_of, default=[1, 8, 32])
    parser.add_argument("--workloads", type=names_of, default=["short", "shared"], help=", ".join(LOADS))
    parser.add_argument("--scenario", choices=list(SCENARIOS), default="load")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, help="of each stream in a sample; else 2, and 4 of a single stream")
    parser.add_argument("--threads", type=int, default=probe().num_usable_cores)
    parser.add_argument("--long-tokens", type=int, default=4096, help="of the long prompt")
    parser.add_argument("--quiet-s", type=float, default=QUIET_S, help="seconds without a long prompt before each")
    parser.add_argument("--output", type=Path, help="file for the JSON")
    options = parser.parse_args()
    try:
        options.servers = [check_name(name) for name in options.servers]
    except ValueError as error:
        parser.error(str(error))
    unknown = [name for name in options.workloads if name not in LOADS]
    if unknown:
        parser.error(f"--workloads {','.join(unknown)}: workloads are {', '.join(LOADS)}")
    if min(options.rounds, *options.streams, options.requests or 1, options.long_tokens) < 1:
        parser.error("--rounds, --streams, --requests and --long-tokens need at least 1")
    return options


if __name__ == "__main__":
    main()
