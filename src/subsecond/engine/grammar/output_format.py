"""What an answer may be asked to look like, as a frozen value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OutputKind = Literal["json_object", "json_schema", "regex", "grammar", "lark"]


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """A form that an answer is held to from its first token to its last.

    kind        "json_object": any JSON object; "json_schema": JSON that is valid under the schema in `source`, JSON
                text itself; "regex": `source` has to match the whole answer; "grammar": a grammar in Lark or GBNF form,
                told apart by its look, with a rule named start or root; "lark": Lark written by this package, which may
                refer to tokens by id
    is_strict   what the schema asks for and cannot be enforced is refused; otherwise such keywords are left out
    unenforced  what was left out of `source` already, by its place in a schema
    """

    kind: OutputKind
    source: str = ""
    is_strict: bool = True
    unenforced: tuple[str, ...] = ()
