"""Gives memory that was freed back to the system; measures nothing.

Arrays below the allocator's threshold come from its heaps, one for a few threads each, whose free pages it keeps. Work
that goes through a model part by part, each with threads of its own, would hold the sum of what they leave behind.
"""

from __future__ import annotations

import ctypes


def trim_heap() -> None:
    """Return the free pages of all heaps of glibc; with another C library nothing happens."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
