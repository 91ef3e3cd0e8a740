"""The stage that leaves out the tokens that a domain does not use, with their rows of the embedding and the head."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from subsecond.compress.importance import Indices
from subsecond.compress.plain_weights import keep_rows
from subsecond.compress.segment_run import as_stored
from subsecond.compress.stage import Decision, StageJob, StageResult
from subsecond.compress.trim_vocabulary import trim_vocabulary
from subsecond.core.errors import InputError
from subsecond.core.settings import setting, validate
from subsecond.measure.text_files import packaged_texts, read_text
from subsecond.models.tokenizer import Tokenizer

TABLES = ("token_embd.weight", "output.weight", "output.bias")


@dataclass(frozen=True, slots=True)
class Settings:
    """Which tokens stay besides those of the calibration text, the special ones and those of single bytes."""

    texts: tuple[str, ...] = setting((), "text files of the domain, in UTF-8")
    least_uses: int = setting(1, "uses in those texts that make a token stay", minimum=1, maximum=2**30)
    first_ids: int = setting(
        0, "tokens with the lowest ids stay, which are the most frequent ones in most vocabularies",
        minimum=0, maximum=2**22,
    )  # fmt: skip

    def __post_init__(self) -> None:
        validate(self)


def needs_calibration(settings: Settings) -> bool:  # noqa: ARG001
    """Whether the stage learns from text: always, as later stages read that text with the new vocabulary."""
    return True


def run(job: StageJob, settings: Settings) -> StageResult:
    """Write the model with fewer tokens.

    Raises:
        InputError: a text cannot be read, or all tokens are used.
        UnsupportedError: the vocabulary cannot be trimmed.
    """
    tokenizer, config = job.checkpoint.tokenizer, job.checkpoint.config
    trimmed = trim_vocabulary(tokenizer.vocabulary, tokenizer.table, _used(job, tokenizer, settings))
    num_kept = len(trimmed.kept)
    if num_kept == config.vocab_size:
        raise InputError(f"all {num_kept} tokens are used or needed; leave the stage out")
    graph = job.checkpoint.graph()
    job.sink.config = replace(job.sink.config, vocab_size=num_kept)
    smaller = Tokenizer(trimmed.vocabulary)
    job.sink.put_tokenizer(smaller)
    saved_bytes = 0
    for index, name in enumerate(graph.weights):
        job.progress("writing", index, len(graph.weights))
        tensor = as_stored(job, name)
        if name in TABLES:
            kept = keep_rows(tensor, trimmed.kept)
            saved_bytes += tensor.raw.nbytes - kept.raw.nbytes
            tensor = kept
        job.sink.put(name, tensor)
        job.checkpoint.weights.release()
    figures = {
        "tokens_before": config.vocab_size,
        "tokens": num_kept,
        "megabytes_less": saved_bytes / 1e6,
        "length_of_other_texts": _growth(tokenizer, smaller),
    }
    what = f"{num_kept} of {config.vocab_size} tokens stay"
    why = "the others do not occur in the text; texts with them are cut into smaller tokens"
    return StageResult((Decision("model", what, why, figures),))


def kept_tokens(before: Tokenizer, after: Tokenizer) -> Indices:
    """The old id of each token of a trimmed vocabulary, int64; the order of tokens stays."""
    texts = {text: token_id for token_id, text in enumerate(before.vocabulary.tokens)}
    found: Indices = np.array([texts[text] for text in after.vocabulary.tokens], np.int64)
    return found


def _used(job: StageJob, tokenizer: Tokenizer, settings: Settings) -> set[int]:
    used = set(np.unique(job.calibration.windows).tolist()) | set(np.unique(job.calibration.held_out).tolist())
    used |= set(range(min(settings.first_ids, tokenizer.vocab_size)))
    counts: Counter[int] = Counter()
    for each in settings.texts:
        counts.update(tokenizer.encode(read_text(Path(each).expanduser())))
    return used | {token_id for token_id, count in counts.items() if count >= settings.least_uses}


def _growth(tokenizer: Tokenizer, smaller: Tokenizer) -> float:
    """Tokens that texts of many kinds are cut into, divided by those before: what other domains pay."""
    texts = [each.text for each in packaged_texts()]
    before, after = (sum(len(each.encode(text)) for text in texts) for each in (tokenizer, smaller))
    return after / before
