"""What a caller says to the token ids that the model reads: a text or messages, by the chat template or without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from subsecond.core.errors import ContextLengthError, InputError, UnsupportedError
from subsecond.models.chat_template import ChatTemplate
from subsecond.models.checkpoint import Checkpoint
from subsecond.models.prompt import Message, check_messages, encode_messages, message_texts, texts_in
from subsecond.models.reasoning import ReasoningMarkers, find_markers, split_reasoning
from subsecond.models.template_meter import LimitError
from subsecond.models.tool_calls import FREE_CHOICE, Tool, ToolChoice
from subsecond.models.tool_history import explained, forms_of, has_calls
from subsecond.models.tool_syntax import ToolSyntax, find_tool_syntax

# No prompt of real text has tokens this long on average; encoding a longer one would only delay the refusal.
MAX_CHARS_PER_TOKEN = 32


class PromptEncoder:
    """Encodes prompts for one model; keeps nothing between calls and may be used from any thread."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tokenizer = checkpoint.tokenizer
        self._template = checkpoint.chat_template
        self._context_length = checkpoint.config.context_length

    def encode(
        self,
        prompt: str | Sequence[Message],
        *,
        raw: bool = False,
        enable_thinking: bool | None = None,
        template_kwargs: Mapping[str, object] | None = None,
        tools: Sequence[Tool] = (),
        tool_choice: ToolChoice = FREE_CHOICE,
    ) -> list[int]:
        """Return the token ids that a prompt comes to, chat template included.

        `tools` are told in the way of the template, or in words of our own where it knows none (`tool_syntax` is then
        generic); with the choice "none" they are left out.
        """
        tools = () if tool_choice.mode == "none" else tuple(tools)
        self._check_prompt(prompt, tools)
        template = self._template
        if tools and (raw or template is None):
            reason = "raw=True goes without the" if raw else "this model has no"
            raise UnsupportedError(f"{reason} chat template, which tells a model of tools; leave the tools out")
        has_variables = enable_thinking is not None or template_kwargs not in (None, {})
        if raw:
            if not isinstance(prompt, str):
                raise InputError("raw=True takes a text, not a list of messages")
            if has_variables:
                raise InputError(
                    "raw=True goes without the chat template; leave enable_thinking and template_kwargs out"
                )
            return self._encode_plain(prompt, allow_special=True)
        if template is None:
            if has_variables:
                raise InputError("this model has no chat template; leave enable_thinking and template_kwargs out")
            if not isinstance(prompt, str):
                raise InputError("this model has no chat template; give the prompt as one text")
            return self._encode_plain(prompt, allow_special=False)
        variables = template.settings(enable_thinking, template_kwargs) if has_variables else {}
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else self._history(prompt, template)
        return self._encode_messages(template, messages, variables, tools, tool_choice)

    @cached_property
    def markers(self) -> ReasoningMarkers | None:
        """What reasoning stands between; None for a model that does not reason."""
        template = self._template
        return find_markers(self._tokenizer.control_tokens, template.source if template else None)

    @cached_property
    def tool_syntax(self) -> ToolSyntax | None:
        """How the model writes calls of tools; None for a model without a chat template."""
        template = self._template
        return find_tool_syntax(template.source if template else None, self._tokenizer)

    def _encode_messages(
        self,
        template: ChatTemplate,
        messages: Sequence[Message],
        variables: Mapping[str, object],
        tools: Sequence[Tool],
        choice: ToolChoice,
    ) -> list[int]:
        """Encode in the first form that the template takes, where calls and tools have several."""
        check_messages(messages)
        syntax = self.tool_syntax
        assert syntax is not None, "there is a template"
        if syntax.is_generic and (tools or has_calls(messages)):
            forms = explained(messages, tools, choice)
        else:
            forms = forms_of(messages)
            if tools and "tools" in variables:
                raise InputError("template_kwargs has 'tools', and there are tools besides; give one of them")
            if tools:
                variables = {**variables, "tools": [tool.as_function() for tool in tools]}
        refusal: InputError | None = None
        for form in forms:
            try:
                return encode_messages(self._tokenizer, template.render, form, variables)
            except LimitError:
                raise
            except InputError as error:
                refusal = refusal or error
        assert refusal is not None, "there is at least one form"
        raise refusal

    def _history(self, messages: Sequence[Any], template: ChatTemplate) -> list[Message]:
        """The messages, with reasoning that stands in the assistant's content moved to where templates look for it.

        Templates that look for it in the content would not find it there once it is protected, as all texts are.
        """
        markers = self.markers
        if markers is None or markers.closing not in template.source:
            return list(messages)
        history: list[Message] = []
        for message in messages:
            content = message.get("content") if isinstance(message, Mapping) else None
            parts = None
            if isinstance(content, str) and message.get("role") == "assistant" and "reasoning_content" not in message:
                parts = split_reasoning(content, markers)
            history.append({**message, "reasoning_content": parts[0], "content": parts[1]} if parts else message)
        return history

    def _check_prompt(self, prompt: object, tools: Sequence[Tool]) -> None:
        """Raise InputError for what is no prompt, or far beyond the context before it is encoded."""
        if isinstance(prompt, bytes | bytearray | Mapping) or not isinstance(prompt, Sequence):
            raise InputError(f"the prompt is {type(prompt).__name__}; give a text or a list of messages")
        texts = [prompt] if isinstance(prompt, str) else [text for message in prompt for text in message_texts(message)]
        texts += texts_in([tool.as_function() for tool in tools])
        num_chars = sum(map(len, texts))
        limit = self._context_length
        if num_chars > limit * MAX_CHARS_PER_TOKEN:
            raise ContextLengthError(
                f"the prompt has {num_chars} characters, far more than fit into the context length of {limit} tokens; "
                "give a shorter one"
            )

    def _encode_plain(self, text: str, *, allow_special: bool) -> list[int]:
        """Token ids of a text without a template, with the token that begins a text if the model expects it."""
        tokenizer = self._tokenizer
        token_ids = tokenizer.encode(text, allow_special=allow_special)
        if tokenizer.add_bos and tokenizer.bos_id is not None and token_ids[:1] != [tokenizer.bos_id]:
            return [tokenizer.bos_id, *token_ids]
        return token_ids
