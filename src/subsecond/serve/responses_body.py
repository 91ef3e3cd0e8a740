"""The response object of the responses API: what was asked for and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from subsecond.core.errors import OverloadedError, SubsecondError
from subsecond.serve.answers import Answer, AnswerUsage
from subsecond.serve.responses_events import ResponseWriter
from subsecond.serve.responses_order import DEFAULT_TEMPERATURE, ResponseOrder
from subsecond.serve.responses_types import ResponsesRequest
from subsecond.serve.served_info import served_fields


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """What is known of a response before it is answered."""

    request: ResponsesRequest
    wanted: ResponseOrder
    number: str
    created_s: float


def response_body(head: ResponseHead, writer: ResponseWriter, answer: Answer | None) -> dict[str, Any]:
    """Return the object, in which what was asked for stands as it is honoured; `answer` is None where none is made."""
    request, is_over = head.request, writer.status != "in_progress"
    reasoning, text = request.reasoning, request.text
    body = {
        "id": head.number,
        "object": "response",
        "created_at": int(head.created_s),
        "status": writer.status,
        "error": None if writer.error is None else _error(writer.error),
        "incomplete_details": None if writer.incomplete_reason is None else {"reason": writer.incomplete_reason},
        "model": request.model,
        "output": list(writer.items),
        "usage": _usage(answer.usage if answer else AnswerUsage(0, 0, 0, 0)) if is_over else None,
        "instructions": request.instructions,
        "previous_response_id": request.previous_response_id,
        "store": request.store is not False,
        "background": False,
        "temperature": DEFAULT_TEMPERATURE if request.temperature is None else request.temperature,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        "top_logprobs": request.top_logprobs or 0,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "tools": request.tools or [],
        "tool_choice": request.tool_choice or "auto",
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "text": {"format": text.format if text and text.format else {"type": "text"}, "verbosity": "medium"},
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "truncation": "disabled",
        "service_tier": "default",
        "metadata": request.metadata or {},
        "user": request.user,
        "safety_identifier": request.safety_identifier,
        "prompt_cache_key": request.prompt_cache_key,
    }
    if is_over and answer is not None:
        body["subsecond"] = served_fields(answer.served, head.wanted.offered.left_out)
    return body


def _usage(usage: AnswerUsage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _error(error: SubsecondError) -> dict[str, str]:
    code = "rate_limit_exceeded" if isinstance(error, OverloadedError) else "server_error"
    return {"code": code, "message": str(error)}
