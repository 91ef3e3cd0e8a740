"""Runs graphs with torch: the fp32 reference, and the way to any device that torch knows."""

from __future__ import annotations

from subsecond.backends.torch.backend import TorchBackend

__all__ = ["TorchBackend"]
