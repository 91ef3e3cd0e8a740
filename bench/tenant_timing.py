"""Whether one tenant of our server can tell from waiting times what another has asked, and what its own cache saves it.

Run: python -m bench.tenant_timing --model MODEL.gguf [--probes 500] [--prompt-tokens 256] [--weights stored|int8|int4]

A round has three requests: tenant A sends a prompt; tenant B and then A itself probe, half of the time with the same
prompt (hit) and half with another (miss), in an order drawn from a seed. The area under the curve of the first token's
time is the probability that a miss takes longer than a hit: near 0.5 a tenant learns nothing, near 1 the cache works.
A table goes to standard error, one JSON object to standard output.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import statistics
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from bench.compare import origin_json
from bench.models import find_model
from bench.serving.client import Address, complete
from bench.serving.commands import Capacity, our_server
from bench.serving.loads import random_ids
from bench.serving.percentiles import area_standard_error, area_under_curve, percentile
from bench.serving.servers import HttpServer
from subsecond.core.hardware import probe

KEYS_VARIABLE = "SUBSECOND_API_KEYS"
WARMUP_ROUNDS = 10
CACHED_PROMPTS = 64  # so many prompts' worth of key/value memory, so that none is evicted before it is probed


@dataclass(slots=True)
class Probes:
    """First tokens' times by whether the prompt had been sent before."""

    hit_ms: list[float] = field(default_factory=list)
    miss_ms: list[float] = field(default_factory=list)
    num_cached_tokens: int = 0  # of all hits together, as the server says

    def as_json(self) -> dict[str, float]:
        """The area under the curve and what it comes from."""
        hit, miss = statistics.median(self.hit_ms), statistics.median(self.miss_ms)
        return {
            "auc": area_under_curve(self.miss_ms, self.hit_ms),
            "auc_standard_error": area_standard_error(len(self.miss_ms), len(self.hit_ms)),
            "num_hits": len(self.hit_ms),
            "num_misses": len(self.miss_ms),
            "hit_p50_ms": hit,
            "hit_p95_ms": percentile(self.hit_ms, 0.95),
            "miss_p50_ms": miss,
            "miss_p95_ms": percentile(self.miss_ms, 0.95),
            "speed_up": miss / hit,
            "num_cached_tokens": self.num_cached_tokens,
        }


def labels(num_probes: int, seed: str) -> list[bool]:
    """As many hits as misses in an order that nobody can guess."""
    found = [True, False] * num_probes
    random.Random(seed).shuffle(found)
    return found


class Tenants:
    """Two tenants of one server, of whom the first fills the cache and both probe."""

    def __init__(self, server: HttpServer, addresses: Mapping[str, Address], num_prompt_tokens: int) -> None:
        self._server = server
        self._addresses = addresses
        self._num_prompt_tokens = num_prompt_tokens

    async def probe(self, num_probes: int, name: str) -> dict[str, Probes]:
        """As many hits and as many misses from each tenant, each after a prompt of the first."""
        found = {tenant: Probes() for tenant in self._addresses}
        first = next(iter(self._addresses))
        orders = {tenant: labels(num_probes, f"{name} {tenant}") for tenant in found}
        for turn in range(2 * num_probes):
            sent = f"{name} {turn}"
            await self._first_token(first, sent)
            for tenant in reversed(found):
                is_hit = orders[tenant][turn]
                ttft_ms, num_cached = await self._first_token(tenant, sent if is_hit else f"{sent} of {tenant}")
                (found[tenant].hit_ms if is_hit else found[tenant].miss_ms).append(ttft_ms)
                found[tenant].num_cached_tokens += num_cached if is_hit else 0
            if turn % 100 == 99:
                print(f"{turn + 1} of {2 * num_probes} rounds", file=sys.stderr, flush=True)
        return found

    async def _first_token(self, tenant: str, seed: str) -> tuple[float, int]:
        body = self._server.body(random_ids(self._num_prompt_tokens, f"tenants {seed}"), 1)
        answer = await complete(self._addresses[tenant], body)
        return answer.ttft_ms, answer.num_cached_tokens or 0


def line_of(what: str, found: Mapping[str, float]) -> str:
    """The figures of one tenant for a reader."""
    return (
        f"{what:<16} AUC {found['auc']:.3f} (chance alone: 0.5 +- {found['auc_standard_error']:.3f}), hit "
        f"{found['hit_p50_ms']:.1f} ms, miss {found['miss_p50_ms']:.1f} ms, {found['speed_up']:.2f}x"
    )


def main() -> None:
    """Measure and print."""
    options = parse_options()
    keys = {tenant: secrets.token_urlsafe(32) for tenant in ("A", "B")}
    capacity = Capacity(options.threads, CACHED_PROMPTS, options.prompt_tokens + 1)
    command = partial(our_server, find_model(options.model), options.weights, capacity)
    environment = {KEYS_VARIABLE: "\n".join(f"{tenant} {key}" for tenant, key in keys.items())}
    with ExitStack() as stack:
        server = HttpServer(command, "/health/ready", environment, api_key=keys["A"])
        stack.callback(server.stop)
        server.start()
        addresses = {tenant: replace(server.address, api_key=key) for tenant, key in keys.items()}
        tenants = Tenants(server, addresses, options.prompt_tokens)
        server.run(tenants.probe(WARMUP_ROUNDS // 2, "warm-up"))
        found = server.run(tenants.probe(options.probes, "probe"))
    result = {"across tenants": found["B"].as_json(), "within a tenant": found["A"].as_json()}
    for what, figures in result.items():
        print(line_of(what, figures), file=sys.stderr)
    settings = {"model": options.model, "prompt_tokens": options.prompt_tokens}
    print(json.dumps(origin_json(options.threads) | settings | result))


def parse_options() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="Probe whether tenants learn of each other from waiting times.")
    parser.add_argument("--model", required=True, help="a path, a pulled model, or a shape of random weights")
    parser.add_argument("--probes", type=int, default=500, help="hits, and as many misses, from each tenant")
    parser.add_argument("--prompt-tokens", type=int, default=256)
    parser.add_argument("--weights")
    parser.add_argument("--threads", type=int, default=probe().num_usable_cores)
    options = parser.parse_args()
    if options.probes < 1 or options.prompt_tokens < 1:
        parser.error("--probes and --prompt-tokens need at least 1")
    return options


if __name__ == "__main__":
    main()
