"""A conversation to the text of a prompt, by the template that comes with a model; templates are untrusted programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from subsecond.core.errors import InputError
from subsecond.models.template_meter import DEFAULT_LIMITS, LimitError, Meter, TemplateLimits

if TYPE_CHECKING:
    from jinja2 import Template


class ChatTemplate:
    """One model's chat template. The template engine is loaded and the template compiled at the first rendering."""

    def __init__(self, source: str, bos_token: str, eos_token: str, limits: TemplateLimits = DEFAULT_LIMITS) -> None:
        """Keep the Jinja `source`; InputError if it is too long."""
        num_bytes = len(source.encode("utf-8", "surrogatepass"))
        if num_bytes > limits.max_source_bytes:
            raise InputError(f"the chat template has {num_bytes} bytes; at most {limits.max_source_bytes} are allowed")
        self.source = source
        self._bos_token = bos_token
        self._eos_token = eos_token
        self._limits = limits
        self._compiled: Template | None = None

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, object]] | None = None,
        **extra: object,
    ) -> str:
        """Return the prompt for `messages`, with the opening of the assistant's answer unless told otherwise.

        `extra` are further variables of the template. Raises InputError when the template is wrong, refuses the
        conversation or reaches a limit, and when a value is not plain data.
        """
        if len(messages) > self._limits.max_messages:
            raise InputError(
                f"the conversation has {len(messages)} messages; at most {self._limits.max_messages} are allowed"
            )
        if not all(isinstance(message, Mapping) for message in messages):
            raise InputError("every message must be a mapping with a role and a content")
        variables = {
            "messages": list(messages),
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self._bos_token,
            "eos_token": self._eos_token,
            **extra,
        }
        Meter(self._limits).write(variables, "the conversation")
        return self._guarded_render(variables)

    def _guarded_render(self, variables: Mapping[str, object]) -> str:
        """Compile if needed and render, every failure of the template being an InputError."""
        try:
            if self._compiled is None:
                from subsecond.models.template_sandbox import compile_template

                self._compiled = compile_template(self.source, self._limits)
            pieces: list[str] = []
            num_chars = 0
            for piece in self._compiled.generate(**variables):
                num_chars += len(piece)
                if num_chars > self._limits.max_output_chars:
                    raise LimitError(f"the chat template writes more than {self._limits.max_output_chars} characters")
                pieces.append(piece)
            return "".join(pieces)
        except InputError:
            raise
        except RecursionError:
            raise InputError("the chat template nests too deeply") from None
        except Exception as error:  # a template can provoke any error of the language it is written in
            raise InputError(f"the chat template fails: {type(error).__name__}: {str(error)[:300]}") from error
