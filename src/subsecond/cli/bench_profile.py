"""`subsecond bench --profile`: where the time of steps goes, by operator, as text and as part of the report."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from subsecond.cli.output import table

if TYPE_CHECKING:
    from subsecond.backends.probe import Probe
    from subsecond.cli.bench_targets import Subject
    from subsecond.measure.html_page import Page

PROMPT_TOKENS = 512
CONTEXT_TOKENS = 512
LEAST_SHARE = 0.005  # of a step's time, below which an operator is left out of tables
HEADING = ("step", "operators", "calls", "ms", "share", "GFLOP", "MB", "of peak ops", "of read rate", "predicted ms")


def take_profile(
    args: argparse.Namespace, subject: Subject, num_sequences: Sequence[int], *, is_quiet: bool
) -> dict[str, Any]:
    """Time the operators of some steps; the machine is measured first where that has not been done.

    is_quiet  whether no other programs compute, without which slow operators are no finding

    Raises:
        UnsupportedError: the model does not run with native kernels in this process.
    """
    from subsecond.backends.native import NativeBackend, choose_isa
    from subsecond.backends.native.prediction import cost_model
    from subsecond.cli.progress import step_progress
    from subsecond.core.errors import UnsupportedError
    from subsecond.measure import operator_profile

    backend = subject.backend
    if not isinstance(backend, NativeBackend):
        raise UnsupportedError(
            "--profile times the native kernels in this process; leave out --no-in-process and --backend torch"
        )
    probe = _probe(backend.isa, backend.config.num_threads)
    context = min(subject.pool_tokens, subject.checkpoint.config.context_length)
    cost = cost_model(subject.checkpoint, probe, context, args.weights)
    past = min(CONTEXT_TOKENS, context - 1)
    fitting = [count for count in num_sequences if _fits(backend, past, count)]
    shapes = operator_profile.step_shapes(min(PROMPT_TOKENS, context), past, fitting, backend.max_rows)
    with step_progress("profile", "steps") as show:
        found = operator_profile.profile_steps(backend, cost, probe, shapes, time.perf_counter, show)
    return {
        "isa": backend.isa,
        "steps": [profile.to_json() for profile in found],
        "findings": operator_profile.findings(found, choose_isa(), is_quiet=is_quiet),
    }


def profile_rows(profile: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A table of all steps, the longest operators first."""
    rows: list[tuple[str, ...]] = [HEADING]
    for step in profile["steps"]:
        name = step["shape"]
        whole = ("all", "", f"{step['ms']:.3g}", "", "", "", "", "", f"{step['predicted_ms']:.3g}")
        rows.append((name, *whole))
        rows += [("", *_cells(group)) for group in step["groups"] if group["share"] >= LEAST_SHARE]
    return rows


def profile_text(profile: Mapping[str, Any]) -> str:
    """The profile in lines."""
    return f"profile of the {profile['isa']} kernels\n{table(profile_rows(profile))}"


def add_profile(page: Page, profile: Mapping[str, Any]) -> None:
    """The profile as a section: a table, and bars of the operators of each step."""
    from subsecond.measure.svg_plot import Bar, bar_plot

    page.heading("Profile by operator")
    page.paragraph(
        f"Times of the {profile['isa']} kernels, the least of some runs. Shares are of the fastest multiply "
        "instruction and of the read rate measured on this machine; a step is bound by whichever is near 100 %."
    )
    page.table(profile_rows(profile))
    for step in profile["steps"]:
        page.paragraph(f"{step['shape']}: {step['ms']:.3g} ms a step")
        page.plot(
            bar_plot(
                [Bar(group["name"], group["ms"]) for group in step["groups"] if group["share"] >= LEAST_SHARE], "ms"
            )
        )


def _cells(group: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        group["name"],
        str(group["num_calls"]),
        f"{group['ms']:.3g}",
        f"{group['share']:.1%}",
        f"{group['operations'] / 1e9:.3g}",
        f"{group['num_bytes'] / 1e6:.3g}",
        f"{group['operations_share']:.0%}",
        f"{group['bytes_share']:.0%}",
        f"{group['predicted_ms']:.3g}",
    )


def _fits(backend: Any, past: int, num_sequences: int) -> bool:
    blocks = num_sequences * -(-(past + 1) // backend.block_tokens)
    return bool(num_sequences <= backend.max_rows and blocks <= backend.num_blocks)


def _probe(isa: str, num_threads: int) -> Probe:
    """The stored probe of such kernels, else measured now and stored."""
    from subsecond.backends import probe_store
    from subsecond.backends.native import measuring

    stored = probe_store.load_probe(measuring.fingerprint(isa, num_threads))
    if stored is not None:
        return stored
    probe = measuring.measure(isa, num_threads)
    probe_store.save_probe(probe)
    return probe
