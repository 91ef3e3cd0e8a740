"""Answers kept for a while so that later requests can continue from them: bounded, in memory, one tenant's apart."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from subsecond.models.prompt import Message

MAX_RESPONSES = 1000
MAX_BYTES = 64 * 10**6


@dataclass(frozen=True, slots=True)
class KeptResponse:
    """A response as it was given, and the messages that a later request continues from, instructions left out."""

    body: bytes
    messages: tuple[Message, ...]


@dataclass(slots=True)
class _Shelf:
    """What is kept for one tenant, the longest unused first, each with its bytes."""

    kept: OrderedDict[str, tuple[KeptResponse, int]] = field(default_factory=OrderedDict)
    num_bytes: int = 0


class ResponseStore:
    """Keeps responses by tenant and number. Where room is short, who holds the most gives up the longest unused.

    Used on the event loop alone; nothing is written to disk.
    """

    def __init__(self, *, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._shelves: dict[str, _Shelf] = {}

    @property
    def num_responses(self) -> int:
        """How many are kept, of all tenants."""
        return sum(len(shelf.kept) for shelf in self._shelves.values())

    @property
    def num_bytes(self) -> int:
        """What they hold, of all tenants."""
        return sum(shelf.num_bytes for shelf in self._shelves.values())

    def put(self, tenant: str, number: str, body: bytes, messages: Sequence[Message]) -> bool:
        """Keep a response; False if it is larger than all room there is."""
        # messages that a conversation shares with an earlier one count again: the bound holds without looking
        num_bytes = len(body) + len(msgspec.json.encode(messages))
        if num_bytes > self._max_bytes:
            return False
        shelf = self._shelves.setdefault(tenant, _Shelf())
        shelf.kept[number] = KeptResponse(body, tuple(messages)), num_bytes
        shelf.num_bytes += num_bytes
        while self.num_responses > self._max_responses or self.num_bytes > self._max_bytes:
            largest = max(self._shelves, key=lambda each: self._shelves[each].num_bytes)
            self.drop(largest, next(iter(self._shelves[largest].kept)))
        return True

    def get(self, tenant: str, number: str) -> KeptResponse | None:
        """Return a response of a tenant, which keeps it longer; None if it is not kept (any more)."""
        shelf = self._shelves.get(tenant)
        if shelf is None or number not in shelf.kept:
            return None
        shelf.kept.move_to_end(number)
        return shelf.kept[number][0]

    def drop(self, tenant: str, number: str) -> bool:
        """Forget a response of a tenant; False if it was not kept."""
        shelf = self._shelves.get(tenant)
        if shelf is None or number not in shelf.kept:
            return False
        _, num_bytes = shelf.kept.pop(number)
        shelf.num_bytes -= num_bytes
        if not shelf.kept:
            del self._shelves[tenant]
        return True
