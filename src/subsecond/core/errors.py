"""Errors that a user can cause or meet; our own bugs raise assertions instead.

SubsecondError
|-- InputError        an argument, a message or a template is not acceptable (also a ValueError)
|   `-- ContextLengthError  prompt and answer do not fit
|-- FormatError       a file does not follow its format
|-- UnsupportedError  valid, but not something this version or machine can do
|-- ResourceError     memory, disk or another resource does not suffice
|   `-- OverloadedError     not now; it says when to ask again
|-- DownloadError     a model could not be fetched
`-- IntegrityError    what was fetched or stored is not what was promised
"""

from __future__ import annotations


class SubsecondError(Exception):
    """Root of every error raised on purpose; its text is a plain message for the user."""


class InputError(SubsecondError, ValueError):
    """An argument, a message or a template is not acceptable."""


class ContextLengthError(InputError):
    """Prompt and answer do not fit into the context, or into the memory that there is for it."""


class FormatError(SubsecondError):
    """A file does not follow its format."""


class UnsupportedError(SubsecondError):
    """Valid, but not something this version or this machine can do."""


class ResourceError(SubsecondError):
    """Memory, disk or another resource does not suffice."""


class OverloadedError(ResourceError):
    """What is asked cannot be done in time now; `retry_after_s` is the estimate of when it could be."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DownloadError(SubsecondError):
    """A model could not be fetched."""


class IntegrityError(SubsecondError):
    """What was fetched or stored is not what was promised."""
