"""What one asks of an engine and what comes back token by token, as frozen values; no state of a running request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from subsecond.core.errors import InputError
from subsecond.core.settings import setting, validate
from subsecond.engine.constraint import ConstraintMaker

FinishReason = Literal["stop", "length", "deadline", "cancelled", "error"]
MAX_SEED = 2**64 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose the tokens of an answer and when to stop. The defaults always take the most likely token."""

    temperature: float = setting(
        0.0, "randomness; 0 always takes the most likely token, so an answer can be repeated", minimum=0, maximum=100
    )
    top_k: int = setting(0, "draw among the K most likely tokens; 0 means all", minimum=0, maximum=2**31 - 1)
    top_p: float = setting(
        1.0,
        "draw among the most likely tokens that hold this share of the probability; 1 means all",
        minimum=0,
        is_minimum_excluded=True,
        maximum=1,
    )
    min_p: float = setting(
        0.0, "leave out tokens less likely than this share of the most likely one; 0 means none", minimum=0, maximum=1
    )
    repetition_penalty: float = setting(
        1.0,
        "divide the logits of tokens in the prompt or the answer by this (multiply negative ones); 1 means off",
        minimum=0.01,
        maximum=100,
    )
    presence_penalty: float = setting(
        0.0, "subtract this from the logits of tokens in the answer; 0 means off", minimum=-2, maximum=2
    )
    frequency_penalty: float = setting(
        0.0, "subtract this from a token's logit for each time it is in the answer; 0 means off", minimum=-2, maximum=2
    )
    logit_bias: Mapping[int, float] = setting({}, "add X to the logit of token ID", minimum=-100, maximum=100)
    seed: int | None = setting(
        None, "seed of the random numbers; without one it is drawn and reported", minimum=0, maximum=MAX_SEED
    )
    max_tokens: int | None = setting(
        None, "most tokens in the answer; without it as many as the context holds", minimum=0, maximum=2**31 - 1
    )
    stop: tuple[str, ...] = setting((), "end the answer before this text")
    stop_token_ids: tuple[int, ...] = setting((), "end the answer at this token", minimum=0, maximum=2**31 - 1)
    num_logprobs: int = setting(
        0, "report the log-probabilities of this many most likely tokens at each position", minimum=0, maximum=20
    )
    num_prompt_logprobs: int | None = setting(
        None,
        "report the log-probability of each token of the prompt, and of this many most likely ones at its place",
        minimum=0,
        maximum=20,
    )
    ignore_eos: bool = setting(False, "go on past the model's own end of the answer")

    def __post_init__(self) -> None:
        validate(self)
        if "" in self.stop:
            raise InputError("stop contains an empty text, which would end every answer at once; remove it")

    @property
    def has_penalties(self) -> bool:
        """Whether the choice of a token depends on which tokens came before."""
        return self.repetition_penalty != 1 or self.presence_penalty != 0 or self.frequency_penalty != 0


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt as token ids with its settings.

    id            chosen by the caller; no two live requests of an engine share one
    eos_ids       tokens by which the model ends an answer
    salt          requests with different salts never share cached blocks (one salt a tenant)
    priority      lower numbers are served first, whoever came earlier among equals
    deadline_ms   milliseconds from the submission to the last token: what cannot be begun in time is refused with an
                  OverloadedError, what is not done in time ends there with "deadline"
    sample_index  tells several answers to one prompt apart: random numbers depend on seed, sample and position
    group         requests with the same group, prompt and salt compute their prompt once, whatever the prefix cache
    constraint    makes what the answer is held to; None for an answer that is free
    """

    prompt_ids: tuple[int, ...]
    params: SamplingParams
    id: str
    eos_ids: tuple[int, ...] = ()
    salt: str = ""
    priority: int = 0
    deadline_ms: float | None = None
    sample_index: int = 0
    group: str | None = None
    constraint: ConstraintMaker | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_ids", tuple(self.prompt_ids))
        object.__setattr__(self, "eos_ids", tuple(self.eos_ids))
        if not self.prompt_ids:
            raise InputError("the prompt is empty; give at least one token")
        if self.deadline_ms is not None and not 0 < self.deadline_ms < float("inf"):
            raise InputError(f"deadline_ms={self.deadline_ms} is not allowed; give milliseconds above 0, or None")
        if not -(2**31) <= self.priority < 2**31:
            raise InputError(f"priority={self.priority} is not allowed; give -2^31 to 2^31 - 1")
        if self.constraint is not None and self.params.ignore_eos:
            raise InputError("ignore_eos=True goes past the end that a format has; leave one of them out")
        if not 0 <= self.sample_index < 2**31:
            raise InputError(f"sample_index={self.sample_index} is not allowed; give 0 to 2^31 - 1")


class PromptLogprobs(NamedTuple):
    """Natural logarithm of the probability of a token of the prompt, and the most likely ones in its place."""

    logprob: float
    top_logprobs: tuple[tuple[int, float], ...]


class TokenEvent(NamedTuple):
    """One token of an answer, or its end.

    token_id       None only for an end without a token of its own ("cancelled", "deadline", no token wanted)
    logprob        natural logarithm of its probability, as SampleResult defines it
    top_logprobs   (token id, logprob) of the most likely tokens, most likely first; as many as were asked for
    place          of the token in the answer, from 0
    finish_reason  None until the last event; with "stop" the token is the one that ended the answer
    """

    token_id: int | None
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...]
    place: int
    finish_reason: FinishReason | None
