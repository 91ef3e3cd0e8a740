"""Progress of long commands on standard error, with the time that is left; computes nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

SHOW_INTERVAL_S = 0.5

# Called with the number of steps done and the number of all.
Progress = Callable[[int, int], None]


@contextmanager
def step_progress(name: str, unit: str, num_done_before: int = 0) -> Iterator[Progress]:
    """A progress bar for as long as the block runs; steps done before it began do not count for the speed."""
    from tqdm import tqdm

    with tqdm(desc=name, unit=f" {unit}", initial=num_done_before, delay=0.2, mininterval=SHOW_INTERVAL_S) as bar:

        def show(num_done: int, num_all: int) -> None:
            bar.total = num_all
            bar.update(num_done - bar.n)
            if num_done == num_all:
                bar.refresh()

        yield show


# Called with what is being done, the number of its steps that are done, and of all.
StepProgress = Callable[[str, int, int], None]


@contextmanager
def phase_progress(predicted_s: Mapping[str, float]) -> Iterator[Callable[[str], StepProgress]]:
    """A bar over phases whose predicted seconds are its length, so that the time left is right across them.

    What the block gets is called with the name of a phase when it begins; phases that are skipped count as done.
    """
    from tqdm import tqdm

    total_s = sum(predicted_s.values()) or 1.0
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed} taken, {remaining} left"
    with tqdm(total=1.0, bar_format=form, delay=0.2) as bar:
        begun = list[float]()
        shown = [("", 0.0)]

        def begin(name: str) -> StepProgress:
            before_s = 0.0
            for phase, seconds in predicted_s.items():
                if phase == name:
                    break
                before_s += seconds
            if not begun:  # what an earlier run has done says nothing of the speed
                begun.append(before_s / total_s)
                bar.initial = bar.n = begun[0]
                bar.start_t = bar.last_print_t = time.time()

            def show(what: str, num_done: int, num_all: int) -> None:
                share = num_done / num_all if num_all else 1.0
                bar.n = min((before_s + predicted_s[name] * share) / total_s, 1.0)
                label, now_s = f"{name}, {what}" if what != name else name, time.monotonic()
                if label != shown[0][0] or now_s - shown[0][1] >= SHOW_INTERVAL_S:
                    shown[0] = label, now_s
                    bar.set_description_str(label)

            return show

        yield begin
