"""Where the time of a step goes, operator by operator: time, bytes, operations, and shares of what the machine can do.

The times are those of the served kernels; bytes and operations are counted from the graph by the cost model.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from subsecond.backends.batch import Float32, ForwardBatch
from subsecond.backends.cost import CostModel, OperatorCost, Span
from subsecond.backends.probe import Probe, read_rate
from subsecond.core.errors import InputError

NUM_RUNS = 7
LEAST_SHARE = 0.05  # of a step's time: operators that take less are not worth a finding
SLOW_FACTOR = 3.0  # measured over predicted, from which on an operator counts as slower than it should be
_LAYER = re.compile(r"(?<=\.)\d+(?=\.)|(?<=^)\d+(?=\.)")


class ProfiledBackend(Protocol):
    """A backend that can time its operators."""

    isa: str

    @property
    def block_tokens(self) -> int:
        """Positions of one block."""

    @property
    def num_blocks(self) -> int:
        """Blocks of the pool."""

    @property
    def max_rows(self) -> int:
        """Most rows of a step."""

    def forward(self, batch: ForwardBatch) -> Float32:
        """Run one step."""

    def profile(self, is_on: bool) -> None:
        """Begin anew or end."""

    def profiled_ns(self) -> dict[str, int]:
        """Nanoseconds by the output of each operator."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """A step of `num_sequences` sequences with `num_rows` rows each, after `start` positions that are there already."""

    name: str
    num_rows: int
    start: int
    num_sequences: int = 1

    @property
    def spans(self) -> list[Span]:
        """The rows of the sequences."""
        return [Span(self.num_rows, self.start)] * self.num_sequences


@dataclass(frozen=True, slots=True)
class OperatorGroup:
    """The operators of all layers that do the same; figures are sums over them in one step.

    operations_share  operations a second by those of the fastest multiply of the instruction set, all threads
    bytes_share       bytes of weights, keys and values a second by what the threads read from memory
    predicted_ms      by the cost model
    """

    name: str
    operator: str
    num_calls: int
    ms: float
    share: float
    operations: int
    num_bytes: int
    operations_s: float
    bytes_s: float
    operations_share: float
    bytes_share: float
    predicted_ms: float


@dataclass(frozen=True, slots=True)
class StepProfile:
    """The operators of one step, longest first. `ms` is the step's time, `other_ms` what no operator took."""

    shape: str
    num_rows: int
    isa: str
    ms: float
    predicted_ms: float
    other_ms: float
    groups: tuple[OperatorGroup, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields by name, as JSON holds them."""
        return asdict(self)


def step_shapes(
    prompt_tokens: int, context_tokens: int, num_sequences: Sequence[int], max_rows: int
) -> list[StepShape]:
    """The steps that are worth a look: a chunk of a prompt, and one token for each of so many sequences."""
    rows = min(prompt_tokens, max_rows)
    decoding = [StepShape(f"decode {n} after {context_tokens}", 1, context_tokens, n) for n in num_sequences]
    return [StepShape(f"prefill {rows}", rows, 0), *decoding]


def profile_steps(
    backend: ProfiledBackend,
    cost: CostModel,
    probe: Probe,
    shapes: Sequence[StepShape],
    clock: Callable[[], float],
    progress: Callable[[int, int], None] | None = None,
) -> list[StepProfile]:
    """Run each step some times and tell where its time went; whatever the backend's blocks hold is overwritten.

    Times are the least of the runs, since other programs can only add to them.

    clock  seconds, as time.perf_counter() gives them

    Raises:
        InputError: a step has more rows or positions than the backend holds.
    """
    profiles = []
    for done, shape in enumerate(shapes):
        batch = _batch(backend, shape)
        backend.forward(batch)  # pages and caches
        times: dict[str, list[int]] = defaultdict(list)
        steps_s = []
        for _ in range(NUM_RUNS):
            backend.profile(True)
            start_s = clock()
            backend.forward(batch)
            steps_s.append(clock() - start_s)
            for output, nanoseconds in backend.profiled_ns().items():
                times[output].append(nanoseconds)
        backend.profile(False)
        operators_s = {output: min(found) / 1e9 for output, found in times.items()}
        costs = cost.operators(shape.spans, shape.num_sequences)
        profiles.append(_profile(shape, backend.isa, min(steps_s), operators_s, costs, probe))
        if progress is not None:
            progress(done + 1, len(shapes))
    return profiles


def findings(profiles: Sequence[StepProfile], best_isa: str, *, is_quiet: bool = True) -> list[str]:
    """What is plainly wrong: kernels below what the machine has, operators that take far longer than predicted.

    Of a machine that is not quiet, on which other programs compute, slow operators say nothing.
    """
    found = []
    isas = {profile.isa for profile in profiles} - {best_isa}
    found += [
        f"the {isa} kernels run, though {best_isa} can run here; leave out --isa and SUBSECOND_ISA"
        for isa in sorted(isas)
    ]
    for profile in profiles if is_quiet else ():
        for group in profile.groups:
            if group.share >= LEAST_SHARE and group.ms > SLOW_FACTOR * group.predicted_ms:
                found.append(
                    f"{profile.shape}: {group.name} takes {group.ms:.3g} ms, {group.ms / group.predicted_ms:.1f} times "
                    f"as long as predicted from this machine's measured speed ({group.predicted_ms:.3g} ms)"
                )
    return found


def group_name(output: str) -> str:
    """The name of an operator without the number of its layer: "blk.3.gated" is "blk.*.gated"."""
    return _LAYER.sub("*", output)


def _profile(
    shape: StepShape,
    isa: str,
    step_s: float,
    operators_s: Mapping[str, float],
    costs: Sequence[OperatorCost],
    probe: Probe,
) -> StepProfile:
    by_name: dict[str, list[OperatorCost]] = defaultdict(list)
    for cost in costs:
        by_name[group_name(cost.output)].append(cost)
    total_s = sum(operators_s.values())
    num_bytes = sum(cost.weight_bytes + cost.kv_bytes for cost in costs)
    threads = probe.fingerprint.num_threads
    peak = max(
        (p.operations_s for p in probe.peaks if p.num_threads == threads and p.isa == probe.fingerprint.isa),
        default=max((p.operations_s for p in probe.peaks), default=float("nan")),
    )
    rate = read_rate(probe.read_rates, threads, num_bytes)
    groups = [_group(name, members, operators_s, total_s, peak, rate) for name, members in by_name.items()]
    return StepProfile(
        shape=shape.name,
        num_rows=shape.num_rows * shape.num_sequences,
        isa=isa,
        ms=step_s * 1e3,
        predicted_ms=sum(cost.seconds for cost in costs) * 1e3 + probe.overheads.step_s * 1e3,
        other_ms=(step_s - total_s) * 1e3,
        groups=tuple(sorted(groups, key=lambda group: -group.ms)),
    )


def _group(
    name: str,
    members: Sequence[OperatorCost],
    operators_s: Mapping[str, float],
    total_s: float,
    peak: float,
    rate: float,
) -> OperatorGroup:
    seconds = sum(operators_s[cost.output] for cost in members)
    operations = sum(cost.flops for cost in members)
    num_bytes = sum(cost.weight_bytes + cost.kv_bytes for cost in members)
    per_s = 1.0 / seconds if seconds else 0.0
    return OperatorGroup(
        name=name,
        operator=members[0].operator,
        num_calls=len(members),
        ms=seconds * 1e3,
        share=seconds / total_s if total_s else 0.0,
        operations=operations,
        num_bytes=num_bytes,
        operations_s=operations * per_s,
        bytes_s=num_bytes * per_s,
        operations_share=operations * per_s / peak,
        bytes_share=num_bytes * per_s / rate,
        predicted_ms=sum(cost.seconds for cost in members) * 1e3,
    )


def _batch(backend: ProfiledBackend, shape: StepShape) -> ForwardBatch:
    """The step, every sequence with blocks of its own; tokens mean nothing, times do not depend on them."""
    end = shape.start + shape.num_rows
    num_rows, blocks_each = shape.num_rows * shape.num_sequences, -(-end // backend.block_tokens)
    if num_rows > backend.max_rows:
        raise InputError(f"{shape.name} has {num_rows} rows in a step; the model was loaded for {backend.max_rows}")
    if blocks_each * shape.num_sequences > backend.num_blocks:
        raise InputError(
            f"{shape.name} needs keys and values of {end * shape.num_sequences} tokens; the model was loaded for "
            f"{backend.num_blocks * backend.block_tokens}; give more with --context-tokens"
        )
    sequences = np.arange(shape.num_sequences, dtype=np.int32)
    return ForwardBatch(
        token_ids=np.arange(num_rows, dtype=np.int32) % 97 + 100,
        positions=np.tile(np.arange(shape.start, end, dtype=np.int32), shape.num_sequences),
        row_sequence=np.repeat(sequences, shape.num_rows),
        block_tables=np.arange(shape.num_sequences * blocks_each, dtype=np.int32).reshape(shape.num_sequences, -1),
        logits_rows=(sequences + 1) * shape.num_rows - 1,
    )
