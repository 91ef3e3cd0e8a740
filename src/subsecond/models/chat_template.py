"""A conversation to the text of a prompt, by the template that comes with a model; templates are untrusted programs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from subsecond.core.errors import FormatError, InputError, SubsecondError, UnsupportedError
from subsecond.models.template_meter import DEFAULT_LIMITS, LimitError, Meter, TemplateLimits
from subsecond.models.template_variables import THINKING_SWITCHES, check_variables

if TYPE_CHECKING:
    from jinja2 import Template

OWN_VARIABLES = ("messages", "add_generation_prompt", "bos_token", "eos_token", "self")
"""Names that a rendering sets itself."""

_Made = TypeVar("_Made")


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

        `extra` are further variables of the template.

        Raises:
            InputError: the template refuses the conversation, fails on it or reaches a limit; a value is no plain data.
            FormatError: the template is no valid program.
            UnsupportedError: the template uses what the sandbox does not have.
        """
        if len(messages) > self._limits.max_messages:
            raise InputError(
                f"the conversation has {len(messages)} messages; at most {self._limits.max_messages} are allowed"
            )
        if not all(isinstance(message, Mapping) for message in messages):
            raise InputError("every message must be a mapping with a role and a content")
        variables = {
            "messages": [_with_older_name(message) for message in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": self._bos_token,
            "eos_token": self._eos_token,
            **extra,
        }
        Meter(self._limits).write(variables, "the conversation", InputError)
        return self._guarded_render(variables)

    @cached_property
    def variables(self) -> frozenset[str]:
        """Names that the template takes from outside; raises FormatError or UnsupportedError as `render`."""
        from subsecond.models.template_sandbox import variables_of

        return _compiling(lambda: variables_of(self.source, self._limits))

    def settings(self, enable_thinking: bool | None, given: Mapping[str, object] | None) -> dict[str, object]:
        """Return further variables for `render`: those `given`, and the template's own switch for reasoning.

        None leaves the default to the template.

        Raises:
            InputError: the template does not use a name, sets it itself, or a value is not plain data of modest size.
        """
        if enable_thinking is not None and not isinstance(enable_thinking, bool):
            raise InputError(f"enable_thinking is {type(enable_thinking).__name__}; give True, False or None")
        chosen = check_variables({} if given is None else given)
        for name in chosen:
            if name in OWN_VARIABLES:
                raise InputError(f"template_kwargs has {name!r}, which the conversation itself defines; leave it out")
            if name not in self.variables:
                raise InputError(f"the chat template of this model does not use {name[:50]!r}; {self._usable()}")
        if enable_thinking is not None:
            switch = next((name for name in THINKING_SWITCHES if name in self.variables), None)
            if switch is None:
                raise InputError(
                    "the chat template of this model has no switch for thinking "
                    f"(none of {', '.join(THINKING_SWITCHES)}); leave the choice to the model"
                )
            if chosen.get(switch, enable_thinking) is not enable_thinking:
                raise InputError(f"enable_thinking and template_kwargs[{switch!r}] differ; give one of them")
            chosen[switch] = enable_thinking
        return chosen

    def _usable(self) -> str:
        names = sorted(self.variables - set(OWN_VARIABLES))
        return f"it uses {', '.join(names)[:500]}" if names else "it has no settings"

    def _guarded_render(self, variables: Mapping[str, object]) -> str:
        """Compile if needed and render, every failure of the template being an error of ours."""
        if self._compiled is None:
            from subsecond.models.template_sandbox import compile_template

            self._compiled = _compiling(lambda: compile_template(self.source, self._limits))
        try:
            pieces: list[str] = []
            num_chars = 0
            for piece in self._compiled.generate(variables):
                num_chars += len(piece)
                if num_chars > self._limits.max_output_chars:
                    raise LimitError(f"the chat template writes more than {self._limits.max_output_chars} characters")
                pieces.append(piece)
            return "".join(pieces)
        except SubsecondError:
            raise
        except RecursionError:
            raise UnsupportedError("the chat template nests too deeply") from None
        except Exception as error:  # a template can provoke any error of the language it is written in
            # the latter itself, not its kinds, is what a filter named at run time raises when there is none
            if type(error).__name__ in ("SecurityError", "TemplateRuntimeError"):
                raise UnsupportedError(f"the chat template does what is not allowed: {str(error)[:300]}") from error
            raise InputError(f"the chat template fails: {type(error).__name__}: {str(error)[:300]}") from error


def _compiling(make: Callable[[], _Made]) -> _Made:
    """Call what compiles a template, every failure being an error of ours."""
    from jinja2 import TemplateAssertionError

    try:
        return make()
    except SubsecondError:
        raise
    except RecursionError:
        raise UnsupportedError("the chat template nests too deeply") from None
    except TemplateAssertionError as error:  # a filter or test that there is not
        raise UnsupportedError(f"the chat template cannot be used: {str(error)[:300]}") from error
    except Exception as error:  # beside syntax errors, whatever the compiler of the language raises
        raise FormatError(f"the chat template is not valid: {type(error).__name__}: {str(error)[:300]}") from error


def _with_older_name(message: Mapping[str, object]) -> Mapping[str, object]:
    """Give reasoning the name by which some templates look for it too."""
    reasoning = message.get("reasoning_content")
    return message if reasoning is None or "thinking" in message else {**message, "thinking": reasoning}
