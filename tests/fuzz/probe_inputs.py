"""Stored figures of a machine, valid and mutated."""

from __future__ import annotations

import json
from random import Random

from subsecond.backends.probe_store import probe_json
from tests.fuzz import json_trees
from tests.unit.backends.made_up_probe import PROBE


def valid_probe() -> bytes:
    """A file without a fault."""
    return json.dumps(probe_json(PROBE)).encode()


def mutated_probe(rng: Random) -> bytes:
    """A file with one to three places changed."""
    return json_trees.mutate(probe_json(PROBE), rng)
