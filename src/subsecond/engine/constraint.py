"""What an answer is held to, token by token: the interface between the step loop and whatever knows a grammar."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from subsecond.backends.batch import UInt32


class Constraint(Protocol):
    """Which tokens may come next in one answer. Used by one thread at a time.

    A method that raises ends its own request with that error and no other.
    """

    def fill_mask(self, mask: UInt32) -> None:
        """Write the tokens that may come next into `mask` [words]: bit j of word i is token 32 i + j.

        When nothing may follow, the tokens that end an answer are the ones allowed.
        """

    def advance(self, token_id: int) -> None:
        """Take the token that was chosen."""


ConstraintMaker = Callable[[], Constraint]
"""Makes the constraint of one answer at its start; called once a request, again when samples share a prompt."""
