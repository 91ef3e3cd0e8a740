"""Language models that answer in under a second on the machine at hand; this module only names the public API.

Everything is imported on first use, so `import subsecond` costs nothing and loads no third party.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers take it as true; importing typing would cost more than the rest of this module

if TYPE_CHECKING:
    from subsecond.api import Model, load
    from subsecond.core.errors import (
        ContextLengthError,
        DownloadError,
        FormatError,
        InputError,
        IntegrityError,
        OverloadedError,
        ResourceError,
        SubsecondError,
        UnsupportedError,
    )
    from subsecond.embedder import Embedder, load_embedder

    __version__: str

__all__ = [
    "ContextLengthError",
    "DownloadError",
    "Embedder",
    "FormatError",
    "InputError",
    "IntegrityError",
    "Model",
    "OverloadedError",
    "ResourceError",
    "SubsecondError",
    "UnsupportedError",
    "__version__",
    "load",
    "load_embedder",
]

_MODULE_BY_NAME = {
    "ContextLengthError": "subsecond.core.errors",
    "DownloadError": "subsecond.core.errors",
    "Embedder": "subsecond.embedder",
    "FormatError": "subsecond.core.errors",
    "InputError": "subsecond.core.errors",
    "IntegrityError": "subsecond.core.errors",
    "Model": "subsecond.api",
    "OverloadedError": "subsecond.core.errors",
    "ResourceError": "subsecond.core.errors",
    "SubsecondError": "subsecond.core.errors",
    "UnsupportedError": "subsecond.core.errors",
    "load": "subsecond.api",
    "load_embedder": "subsecond.embedder",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for."""
    import importlib

    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("subsecond")
    if name in _MODULE_BY_NAME:
        return getattr(importlib.import_module(_MODULE_BY_NAME[name]), name)
    raise AttributeError(f"module 'subsecond' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, which are not in the namespace until they are used."""
    return sorted([*globals(), *__all__])
