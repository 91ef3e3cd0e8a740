"""What was freed between arrays that stay goes back to the system."""

from __future__ import annotations

import os
import platform

import numpy as np
import pytest

from subsecond.core.heap import trim_heap
from subsecond.measure.process_reading import memory_bytes


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to return free pages")
def test_free_pages_are_returned() -> None:
    arrays = [np.ones(8192) for _ in range(2000)]  # 64 KiB each, 131 MB
    arrays = arrays[::50]
    before, _ = memory_bytes(os.getpid())
    trim_heap()
    after, _ = memory_bytes(os.getpid())
    assert before is not None and after is not None
    assert before - after > 64 * 10**6
    assert len(arrays) == 40
