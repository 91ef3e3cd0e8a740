"""The native backend: C++ kernels chosen for this processor, behind the one door to the extension module."""

from subsecond.backends.native.backend import NativeBackend, NativeConfig
from subsecond.backends.native.loading import (
    KernelTest,
    Kv,
    check_kv,
    choose_isa,
    is_packed,
    kv_position_bytes,
    load,
    packed_weights,
    report,
    self_test,
    write_artifact,
)
from subsecond.backends.native.taps import NativeTaps
from subsecond.backends.native.weight_formats import Weights, check_weights

__all__ = [
    "KernelTest",
    "Kv",
    "NativeBackend",
    "NativeConfig",
    "NativeTaps",
    "Weights",
    "check_kv",
    "check_weights",
    "choose_isa",
    "is_packed",
    "kv_position_bytes",
    "load",
    "packed_weights",
    "report",
    "self_test",
    "write_artifact",
]
