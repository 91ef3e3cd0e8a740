"""Whether a model shall reason before it answers: what a request of any API wishes, as far as the model lets it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from subsecond.models.template_variables import THINKING_SWITCHES
from subsecond.serve.fields import refuse
from subsecond.serve.order import Order
from subsecond.serve.served_model import ServedModel

EFFORT_VARIABLE = "reasoning_effort"


@dataclass(frozen=True, slots=True)
class ThinkingWish:
    """What a request says about reasoning.

    mode    "off"; "on": it has to; "able": it shall if it can, and answers without where it cannot; "default": as its
            template has it
    effort  a word for templates that take one; others know only whether, not how much
    field   of the request that says so
    """

    mode: Literal["off", "on", "able", "default"]
    field: str
    effort: str | None = None


def with_thinking(order: Order, wish: ThinkingWish | None, model: ServedModel) -> Order:
    """Return the order with a wish turned into settings of the model's own template.

    Raises:
        FieldError: the model cannot do otherwise than against the wish.
    """
    template = model.checkpoint.chat_template
    if wish is None or order.messages is None:
        return order
    variables = template.variables if template is not None else frozenset()
    has_switch = any(name in variables for name in THINKING_SWITCHES)
    can_reason = has_switch or model.prompts.markers is not None
    if wish.mode == "on" and not can_reason:
        refuse(wish.field, "this model does not reason before it answers; leave it out")
    if wish.mode == "off" and can_reason and not has_switch:
        refuse(wish.field, "this model always reasons before it answers; leave it out")
    if wish.effort is not None and EFFORT_VARIABLE in variables:
        order = replace(order, template_kwargs={**order.template_kwargs, EFFORT_VARIABLE: wish.effort})
    if has_switch and wish.mode != "default":
        return replace(order, enable_thinking=wish.mode != "off")
    return order
