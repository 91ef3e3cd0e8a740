"""Our engine in a process of its own, for what HTTP costs: takes loads as JSON lines and prints when their tokens came.

Run: python -m bench.serving.engine_program MODEL --num-threads N --context-tokens N [--weights stored|int8|int4]
A line has "prompts", for each stream the token ids of its requests, and "num_new_tokens". The answer is a line with the
fields of bench.serving.client.Answer for each request of each stream. One event loop reads them all, as in a server.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import uvloop

import subsecond
from bench.serving.client import Answer
from subsecond.engine.protocol import Engine
from subsecond.engine.request import Request, SamplingParams


async def complete(engine: Engine, request: Request) -> Answer:
    """Read one answer to its end."""
    answer = Answer(start_s=time.perf_counter(), num_prompt_tokens=len(request.prompt_ids))
    stream = engine.submit(request)
    async for event in stream:
        now = time.perf_counter()
        if event.token_id is not None:
            answer.stamps_s.append(now)
        if event.finish_reason is not None:
            answer.finish_reason, answer.end_s = event.finish_reason, now
    answer.num_new_tokens = stream.num_tokens
    answer.num_cached_tokens = stream.cached_tokens
    return answer


async def run_streams(
    engine: Engine, prompts: Sequence[Sequence[Sequence[int]]], num_new_tokens: int, numbers: Iterator[int]
) -> list[list[Answer]]:
    """For each stream the answers to its prompts, one after the other; all streams at once."""
    params = SamplingParams(max_tokens=num_new_tokens, ignore_eos=True)

    async def stream(of_stream: Sequence[Sequence[int]]) -> list[Answer]:
        return [await complete(engine, Request(tuple(ids), params, f"load-{next(numbers)}")) for ids in of_stream]

    return await asyncio.gather(*map(stream, prompts))


def main() -> None:
    """Load, say so by a line, and answer loads until the input ends."""
    parser = argparse.ArgumentParser(description="Run loads on the engine in this process.")
    parser.add_argument("model")
    parser.add_argument("--num-threads", type=int)
    parser.add_argument("--context-tokens", type=int)
    parser.add_argument("--weights")
    options = parser.parse_args()
    more = {} if options.weights is None else {"weights": options.weights}
    numbers = itertools.count()
    with subsecond.load(
        options.model, num_threads=options.num_threads, context_tokens=options.context_tokens, **more
    ) as model:
        print(json.dumps("ready"), flush=True)
        for line in sys.stdin:
            load = json.loads(line)
            answers = uvloop.run(run_streams(model.engine, load["prompts"], load["num_new_tokens"], numbers))
            print(json.dumps([[asdict(answer) for answer in stream] for stream in answers]), flush=True)


if __name__ == "__main__":
    main()
