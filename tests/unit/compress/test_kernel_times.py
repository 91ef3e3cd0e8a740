"""Times of sparse linears stand beside those of other formats, for the densities and under the names asked for."""

from __future__ import annotations

from subsecond.compress.kernel_times import time_sparse


def test_every_density_and_every_other_format_has_a_time() -> None:
    sparse, others = time_sparse([(256, 512), (512, 256)], (0.1, 0.9), {"int8": "Q8_0", "int4": "Q4_0"})
    assert list(sparse) == [0.1, 0.9] and list(others) == ["int8", "int4"]
    assert all(0 < seconds < 1 for seconds in (*sparse.values(), *others.values()))


def test_more_linears_take_longer() -> None:
    one, many = ([(1024, 1024)] * count for count in (1, 16))
    times = [time_sparse(shapes, (0.5,), {"int8": "Q8_0"}) for shapes in (one, many)]
    assert times[0][0][0.5] < times[1][0][0.5]
    assert times[0][1]["int8"] < times[1][1]["int8"]
