"""The strings on which tokenizers are compared: thirteen languages, code, emoji, control characters, broken UTF-8."""

from __future__ import annotations

import random
from functools import cache

PROSE = [
    "The quick brown fox doesn't jump over 12345 lazy dogs; they're 67 years old, and we'll SEE   about it, I'M sure.",
    "Über Straße, naïve café: 3,14 € — „Zitat“. Größe, Maß, ÄÖÜ; daß die Häuser schön wären!",
    "L'été dernier, j'étais à Orléans : « C'est l'œuvre d'un maître ! » Où êtes-vous, garçon ?",
    "El niño comió piñas; ¿cuántas? ¡Muchísimas! Año 2024, pingüino y corazón.",
    "Русский текст 2024 года: съешь же ещё этих мягких французских булок, да выпей чаю.",
    "Η γρήγορη καφέ αλεπού πηδάει· ΐ ΰ ώ Ὀδυσσεύς ἄνδρα μοι ἔννεπε, Μοῦσα.",
    "日本語のテキストです。カタカナ、ひらがな、漢字が混ざる。１２３ＡＢＣ",
    "简体中文和繁體中文，标点符号「引号」——破折号……数字123四五六。",
    "한국어 문장입니다. 다람쥐 헌 쳇바퀴에 타고파, 가나다 라마바 123.",
    "هذا نص عربي مع تشكيل: بِسْمِ اللَّهِ، والأرقام ٣٤٥ ثم فاصلة.",
    "זהו טקסט בעברית עם ניקוד: שָׁלוֹם עוֹלָם, ומספרים 42.",
    "हिन्दी में एक वाक्य: क्षत्रिय ज्ञान, संख्या १२३। नमस्ते दुनिया!",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ ตัวเลข ๑๒๓ และวรรณยุกต์ กำลังน้ำ",
    "Tiếng Việt có nhiều dấu: Nguyễn Thị Minh Khai, đường phố, ước mơ; Türkçe: İstanbul ışığı ğüşöç.",
]
CODE = [
    'def main(argc: int) -> None:\n    for index in range(1000):\n\tprint(f"{index:>4} -> {index ** 2}")\r\n\r\n',
    "int main(void) { return a->b[0x1F] != ~c && (d || !e) ? 1u << 3 : -1; } /* 100% */ // \\n\\t\n#define X(y) #y\n",
    "SELECT * FROM `table` WHERE id=1 AND name LIKE '%o''x%'; -- <b>html</b> &amp; {\"json\": [1.5e-10, null]}\n",
    "$ curl -sSL https://example.org/a?b=c&d=%20 | grep -E '^[A-Za-z_]+$' > /dev/null 2>&1\n",
]
EMOJI = [
    "😀👍🏽👩‍👩‍👧‍👦🏳️‍🌈🇩🇪🇯🇵🇺🇸🧑🏿‍🚀❤️‍🔥1️⃣☎️",
    "🤷‍♂️ text 🙈🙉🙊 and 👨🏻‍❤️‍💋‍👨🏾!",
]
ODD = [
    "",
    " ",
    "   leading and trailing   ",
    "\n\n \n\t\r\n x",
    "'sup ''s he'Ll I'M O'Ve",
    "1 12 123 1234 12345 123456789 ٣٤٥ ½ ² Ⅷ",
    "a\u00a0b\u2003c\u200bd\u2028e\u3000f\u0085g",
    "e\u0301 \u1e9b\u0323 ﬁ Å \u212b \u2126 K \u1f7d ǅ ß ẞ ſ ı İ",
    "x" * 300 + " !!??..\n!?",
    "\U0010ffff\U000f0000\x00\x01\x07\x08\x0b\x0c\x1b\x1f\x7f\x80\x9f\ufeff\ufffd\u200d\ufe0f",
    "▁a ▁ b▁▁c",
    "<0x41> <unx> ## ##ing [UNK2] _x_",
    "`tick` ^caret ~tilde |pipe| $dollar +plus =eq",
    "don't can't we're I'd they've a.b.c 3.14 U.S.A. e-mail co-op",
    "\ud55c\u1112\u1161\u11ab",
    "\n" * 40 + " " * 60 + "\t" * 30 + "7" * 50 + "." * 40 + "é" * 40 + "漢" * 40 + "😀" * 20,
    " " * 300 + "a" + " " * 300,
    "Aa" * 200 + "AAAA" * 80 + "ааББ" * 50,
]


@cache
def parity_texts(count: int = 2000) -> list[str]:
    """`count` strings, the same on every run: the ones above, cuttings and mixtures of them, and broken UTF-8."""
    chance = random.Random(20)
    whole = [*PROSE, *CODE, *EMOJI, *ODD]
    letters = (
        "".join(whole[: len(PROSE) + len(CODE) + len(EMOJI)]) + "  \n\n\t\r0123456789'!?|_-\u00a0\u0301\u3000𝒳ßſK▁"
    )
    texts = list(whole)
    while len(texts) < count:
        kind = len(texts) % 4
        if kind == 0:
            source = chance.choice(whole) or " "
            start = chance.randrange(len(source))
            texts.append(source[start : start + chance.randint(1, 60)])
        elif kind == 1:
            texts.append("".join(chance.choices(letters, k=chance.randint(1, 40))))
        elif kind == 2:
            words = [word for each in chance.choices(whole, k=3) for word in each.split(" ")[:9]]
            chance.shuffle(words)
            texts.append(chance.choice([" ", "  ", "\n", "", " \n"]).join(words)[:120])
        else:
            broken = bytearray(chance.choice([*PROSE, *EMOJI]).encode()[: chance.randint(4, 50)])
            for _ in range(chance.randint(1, 4)):
                broken[chance.randrange(len(broken))] = chance.randrange(256)
            texts.append(bytes(broken).decode("utf-8", "replace"))
    return texts


def corpus() -> list[str]:
    """What small vocabularies are trained on: the prose, code and emoji, in overlapping pieces of two lengths."""
    joined = "\n".join([*PROSE, *CODE, *EMOJI])
    return [joined[start : start + length] for length in (24, 60) for start in range(0, len(joined), 7)]
