"""What can be asked of an explanation, and the text and prompts that it takes without others; explains nothing."""

from __future__ import annotations

from dataclasses import dataclass

from subsecond.core.settings import setting, validate

SECTIONS = ("layers", "flips", "attribution", "time")
NEEDS_REFERENCE = frozenset({"layers", "flips", "attribution"})
DEFAULT_PROMPT = "Why does bread rise when it is baked? Answer in one sentence."
DEFAULT_PROMPTS = (
    DEFAULT_PROMPT,
    "Which is heavier, a kilogram of iron or a kilogram of feathers?",
    "Write a polite answer to a customer whose parcel came too late.",
)


@dataclass(frozen=True, slots=True)
class ExplainSettings:
    """How much is looked at."""

    windows: int = setting(2, "windows of the text in which tokens are compared", minimum=1, maximum=10_000)
    window_tokens: int = setting(256, "tokens of a window", minimum=2, maximum=32_768)
    max_tokens: int = setting(24, "most tokens of an answer", minimum=1, maximum=1024)

    def __post_init__(self) -> None:
        validate(self)


PASSAGE = """\
The old mill stood at the bend of the river, where the water ran fast between two rows of willows. For almost two
hundred years it had ground the wheat of the valley, and the people of the three villages around it still told the
time by the sound of its wheel. When the wheel stopped, it was evening, or it was Sunday, or something had happened.

On the morning when our story begins, something had happened. The miller's daughter, whose name was Anna, came down
the stairs and heard nothing. She opened the door of the grinding room and saw her father on his knees beside the
great stone, with a lamp in one hand and a hammer in the other. "It is cracked," he said without turning round. "From
the middle to the edge. You can put a finger into it." She knelt beside him and put a finger into it, and it was true.

A new stone would cost four hundred and twenty crowns, and the mill earned about ninety crowns in a month. Anna was
good at numbers. If they spent nothing on anything else, they would have the money in less than five months; but they
also had to eat, and the roof of the barn had to be mended before the winter. "Seven months," she said, "or eight, if
the price of flour falls again." Her father nodded slowly. He had reached the same answer in his own way.

There were other ways to grind wheat, of course. In the town, thirty kilometres to the south, a company had built a
mill that was driven by steam. It did not need a river, it did not need a miller who knew the weather, and it ground
more flour in a day than theirs did in a fortnight. The bread that was made from it was very white and tasted of
almost nothing, but it was cheap. First the baker had changed, then the school, and last spring even the priest.

Anna thought about this while she made the coffee. What did people pay for, when they paid for flour? They paid for
the weight, and for not having to wait. The steam mill would always be better at both. But it mixed the wheat of a
hundred farms, so nobody could say where a sack had come from, or which year, or whether the field had been wet. She
could say it. Every sack in the store behind the house had a small label in her own hand, with the name of the field
and the day of the harvest. Suppose that this was worth something to somebody.

She took a sheet of paper and wrote three columns. In the first she put what they knew about each sack; in the second,
who might want to know it; in the third, how much more such a person would pay. The third column was a guess, and she
marked it as one, because her teacher had told her that a guess which is not marked turns into a fact overnight. Then
she added up the numbers, crossed one of them out, and added them up again. With a little luck it was not seven months
but four. "Father," she called, "how many of the bakers in the city do you know by name?"
"""
