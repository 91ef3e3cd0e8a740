"""Progress of long commands on standard error, with the time that is left; computes nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called with the number of steps done and the number of all.
Progress = Callable[[int, int], None]


@contextmanager
def step_progress(name: str, unit: str, num_done_before: int = 0) -> Iterator[Progress]:
    """A progress bar for as long as the block runs; steps done before it began do not count for the speed."""
    from tqdm import tqdm

    with tqdm(desc=name, unit=f" {unit}", initial=num_done_before, delay=0.2) as bar:

        def show(num_done: int, num_all: int) -> None:
            bar.total = num_all
            bar.update(num_done - bar.n)
            bar.refresh()

        yield show
