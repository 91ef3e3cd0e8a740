"""The process that tries grammars before the server compiles them, and that a hostile one brings to its end.

Run as a module it reads a line of JSON with a grammar from its input, answers with a line, and so on until the input
ends. Nothing else depends on it, so its death costs nothing but a new start.
"""

from __future__ import annotations

import json
import random
import resource
import signal
import sys
from typing import Any

import numpy as np
from llguidance import LLMatcher
from llguidance.gbnf_to_lark import gbnf_to_lark

from subsecond.engine.grammar.costs import parser_limits
from subsecond.engine.grammar.expressions import byte_vocabulary, reason_of
from subsecond.engine.grammar.large_stack import with_large_stack
from subsecond.engine.grammar.lark_text import OPTIONS

NUM_TRIED_BYTES = 48


def main() -> None:
    """Serve requests {"grammar": text, "is_gbnf": bool} with {"fault": text, "lark": text}."""
    max_cpu_s, max_bytes = float(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    byte_vocabulary()
    for line in sys.stdin:
        request = json.loads(line)
        # the signal ends the process, whatever it is in the middle of
        signal.setitimer(signal.ITIMER_PROF, max_cpu_s)
        answer = with_large_stack(lambda: _tried(request))  # noqa: B023 - called at once
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _tried(request: dict[str, Any]) -> dict[str, str]:
    lark = request["grammar"]
    if request["is_gbnf"]:
        try:
            lark = OPTIONS + gbnf_to_lark(lark.removeprefix(OPTIONS))
        except Exception as error:  # the converter raises many kinds for damaged text
            return {"fault": f"the GBNF grammar cannot be read: {str(error)[:200]}", "lark": ""}
    return {"fault": fault_of_grammar(lark), "lark": lark.removeprefix(OPTIONS)}


def fault_of_grammar(lark: str) -> str:
    """Why an answer cannot be held to a grammar; empty when it can, as far as some bytes of an answer tell."""
    matcher = LLMatcher(byte_vocabulary(), lark, log_level=0, limits=parser_limits())
    if matcher.is_error():
        return reason_of(matcher.get_error())
    mask = np.zeros((byte_vocabulary().vocab_size + 31) // 32, np.uint32)
    chooser = random.Random(1)
    for num_bytes in range(NUM_TRIED_BYTES):
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if matcher.is_error():
            reason = reason_of(matcher.get_error())
            return "no answer can satisfy it" if reason.startswith("NoExtension") else f"{reason} (byte {num_bytes})"
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
        going_on = [token for token in allowed if token < 256]
        if not going_on or matcher.is_stopped():
            break
        matcher.consume_token(chooser.choice(going_on))
    return ""


if __name__ == "__main__":
    main()
