"""The tokenizer on a hand-made vocabulary: exact ids, special tokens only where allowed, files, refusals."""

from __future__ import annotations

import json
import random
from base64 import b64decode, b64encode
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subsecond.core.errors import FormatError, InputError, UnsupportedError
from subsecond.models.tokenizer import Tokenizer
from subsecond.models.vocabulary import TokenKind
from subsecond.models.word_cutting import WordCutter
from subsecond.models.word_rules import find_word_rule
from tests.byte_vocabulary import SPECIAL, byte_characters, metadata, token_texts

RULES = [
    "gpt-2", "default", "olmo", "smollm", "command-r", "llama-bpe", "llama3", "dbrx", "smaug-bpe", "qwen2", "qwen35",
    "deepseek-r1-qwen", "tekken", "gpt-4o", "deepseek-llm", "deepseek-coder", "deepseek-v3",
]  # fmt: skip


def make(**changes: object) -> Tokenizer:
    return Tokenizer.from_gguf(metadata(**changes))  # type: ignore[arg-type]


TOKENIZER = make()
TOKENS = token_texts(metadata())
ID = {text: token_id for token_id, text in enumerate(TOKENS)}


def spelled(token_ids: list[int]) -> list[str]:
    return [TOKENS[token_id] for token_id in token_ids]


def test_merges_apply_in_order_of_rank() -> None:
    assert spelled(TOKENIZER.encode("hello the world")) == ["hello", "Ġthe", "Ġw", "o", "r", "l", "d"]
    assert spelled(TOKENIZER.encode("é\n")) == ["Ã©", "Ċ"]
    assert TOKENIZER.encode("") == []


def test_sizes_and_roles() -> None:
    assert TOKENIZER.vocab_size == len(TOKENS)
    assert TOKENIZER.bos_id == ID["<|start|>"]
    assert TOKENIZER.eos_ids == (ID["<|end|>"],)
    assert (TOKENIZER.bos_token, TOKENIZER.eos_token) == ("<|start|>", "<|end|>")
    assert TOKENIZER.add_bos is False
    assert TOKENIZER.unencodable_bytes == b""
    assert {text for text in SPECIAL if TOKENIZER.is_special(ID[text])} == {"<|start|>", "<|start|>!", "<|end|>"}
    assert set(TOKENIZER.control_tokens) == {"<|start|>", "<|start|>!", "<|end|>", "<tool>"}


def test_roles_may_be_absent() -> None:
    tokenizer = make(bos_token_id=None, eos_token_id=None, token_type=None, add_bos_token=True)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.bos_token, tokenizer.eos_token) == (None, (), "", "")
    assert tokenizer.add_bos is False, "nothing can be added"


def test_a_role_makes_a_token_special_whatever_its_kind() -> None:
    tokenizer = make(token_type=None)
    assert tokenizer.is_special(ID["<|end|>"])
    assert ID["<|end|>"] not in tokenizer.encode("<|end|>")
    assert tokenizer.encode("<|end|>", allow_special=True) == [ID["<|end|>"]]


def test_further_ends_are_found_by_their_keys_and_texts() -> None:
    tokenizer = make(extra_tokens=["<|im_end|>"], eot_token_id=ID["<|start|>!"])
    assert tokenizer.eos_ids == (ID["<|end|>"], ID["<|start|>!"])
    kinds = metadata(extra_tokens=["<|im_end|>"])["tokenizer.ggml.token_type"]
    assert isinstance(kinds, list)
    kinds[-1] = TokenKind.CONTROL
    assert make(extra_tokens=["<|im_end|>"], token_type=kinds).eos_ids == (ID["<|end|>"], len(TOKENS))


@pytest.mark.parametrize("rule", RULES)
def test_plain_text_never_yields_a_special_token(rule: str) -> None:
    tokenizer = make(pre=rule)
    text = "a<|start|>b<|end|><|start|>! <tool>"
    special_ids = set(tokenizer.control_tokens.values())
    assert not special_ids & set(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_where_allowed_longest_first() -> None:
    token_ids = TOKENIZER.encode("a<|start|>!b<|start|><tool><|end|>", allow_special=True)
    assert spelled(token_ids) == ["a", "<|start|>!", "b", "<|start|>", "<tool>", "<|end|>"]
    assert TOKENIZER.decode(token_ids) == "ab<tool>"
    assert TOKENIZER.decode(token_ids, skip_special=False) == "a<|start|>!b<|start|><tool><|end|>"


def test_unused_tokens_are_never_produced() -> None:
    assert ID["[PAD]"] not in TOKENIZER.encode("[PAD]", allow_special=True)


def test_a_special_token_is_not_produced_by_merges() -> None:
    tokenizer = make(token_type=[3 if text == "hello" else 1 for text in TOKENS])
    assert tokenizer.encode("hell")
    with pytest.raises(FormatError, match="do not fit"):
        tokenizer.encode("hello")
    with pytest.raises(FormatError, match="do not fit"):
        tokenizer.encode("h" * tokenizer.vocab_size)


def test_bytes_of_tokens() -> None:
    assert TOKENIZER.token_bytes(ID["Ġthe"]) == b" the"
    assert TOKENIZER.token_bytes(ID["Ã"]) == b"\xc3"
    assert TOKENIZER.token_bytes(ID["<|end|>"]) == b"<|end|>"
    assert b"".join(TOKENIZER.token_bytes(byte) for byte in range(256)) == bytes(range(256))


@pytest.mark.parametrize("token_id", [-1, len(TOKENS), 2**40])
def test_unknown_ids_are_refused(token_id: int) -> None:
    with pytest.raises(InputError, match="no token"):
        TOKENIZER.decode([token_id])


def test_broken_bytes_decode_to_the_replacement_character() -> None:
    assert TOKENIZER.decode([ID["Ã"], ID["a"]]) == "\ufffda"


@given(st.text())
def test_text_survives(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert TOKENIZER.decode(TOKENIZER.encode(text, allow_special=True), skip_special=False) == text


def test_lone_surrogates_are_refused() -> None:
    for allow_special in (False, True):
        with pytest.raises(InputError, match="surrogate"):
            TOKENIZER.encode("a\ud800", allow_special=allow_special)


def test_words_are_cut_by_the_named_rule() -> None:
    merges = ["1 2", "12 3", "123 4", "Ġ 1", "Ċ Ċ", "! Ċ"]

    def cut(rule: str, text: str) -> list[bytes]:
        tokenizer = make(pre=rule, merges=merges)
        return [tokenizer.token_bytes(token_id) for token_id in tokenizer.encode(text)]

    assert cut("gpt-2", "1234 1") == [b"1234", b" 1"]
    assert cut("smollm", "1234 1") == [b"1", b"2", b"3", b"4", b" ", b"1"]
    assert cut("qwen2", "1234 1") == [b"1", b"2", b"3", b"4", b" ", b"1"]
    assert cut("llama-bpe", "1234 1") == [b"123", b"4", b" ", b"1"]
    assert cut("gpt-2", "!\n") == [b"!", b"\n"]
    assert cut("qwen2", "!\n") == [b"!\n"]


def words(rule: str, text: str) -> list[str]:
    byte = {character: number for number, character in enumerate(byte_characters())}
    cut = WordCutter(find_word_rule(rule)).cut(text, is_first=True)
    return [bytes(byte[character] for character in word).decode() for word in cut]


def test_deepseek_rules() -> None:
    assert words("deepseek-v3", "12345 don't (ok)\n\n 漢字かなx") == [
        "123", "45", " don", "'t", " (", "ok", ")\n\n", " ", "漢字かな", "x"
    ]  # fmt: skip
    assert words("deepseek-coder", "a12\n\nb. 漢字 ,x") == ["a", "1", "2", "\n", "\n", "b", ".", " ", "漢字", " ,", "x"]
    assert words("deepseek-llm", "aé12+ b漢字!  \nԱև  ") == [
        "a", "é", "1", "2", "+", " b", "漢字", "!", "  ", "\n", "Ա", "և", "  "
    ]  # fmt: skip


def test_one_rule_has_several_names() -> None:
    for names in (["llama-bpe", "llama3", "llama-v3"], ["qwen2", "deepseek-r1-qwen"], ["dbrx", "smaug-bpe"]):
        assert len({id(find_word_rule(name)) for name in names}) == 1
    assert find_word_rule("gpt-4o") is find_word_rule("llama4")
    assert find_word_rule("default") is find_word_rule("gpt-2")


def test_a_long_run_of_spaces_is_cut_in_time() -> None:
    """The pattern that DeepSeek's own file has for it looks at each of them again and again."""
    assert words("deepseek-llm", " " * 200_000 + "x") == [" " * 199_999, " x"]


def test_qwen2_composes_characters_as_in_training() -> None:
    assert make(pre="qwen2").encode("e\u0301") == make(pre="qwen2").encode("é")
    assert make(pre="olmo").encode("e\u0301") == make(pre="olmo").encode("é")
    assert make(pre="smollm").decode(make(pre="smollm").encode("e\u0301")) == "e\u0301"


def test_llama_takes_a_whole_word_that_is_a_token() -> None:
    tokenizer = make(pre="llama-bpe", extra_tokens=["whole"])
    assert tokenizer.encode("whole") == [len(TOKENS)]
    assert tokenizer.add_bos is True


def test_tokens_that_are_not_utf8_or_occur_twice_are_kept_apart(tmp_path: Path) -> None:
    tokenizer = make(extra_tokens=["\udcff", "\udcfe", "hello", ""])
    first = len(TOKENS)
    assert [tokenizer.token_bytes(first + index) for index in range(4)] == [b"\xff", b"\xfe", b"hello", b""]
    assert tokenizer.encode("hello") == [first + 2]
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    ids = range(tokenizer.vocab_size)
    assert [loaded.token_bytes(each) for each in ids] == [tokenizer.token_bytes(each) for each in ids]
    assert loaded.encode("hello") == [first + 2]


def assert_same(loaded: Tokenizer, tokenizer: Tokenizer, text: str) -> None:
    for allow_special in (False, True):
        assert loaded.encode(text, allow_special=allow_special) == tokenizer.encode(text, allow_special=allow_special)
    long = text * (1 + tokenizer.vocab_size // len(text))
    assert loaded.encode(long) == tokenizer.encode(long)
    for name in ("vocab_size", "bos_id", "eos_ids", "add_bos", "bos_token", "eos_token", "control_tokens"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
    ids = range(tokenizer.vocab_size)
    assert [loaded.token_bytes(each) for each in ids] == [tokenizer.token_bytes(each) for each in ids]
    assert [loaded.is_special(each) for each in ids] == [tokenizer.is_special(each) for each in ids]


@pytest.mark.parametrize("rule", RULES)
def test_a_saved_tokenizer_is_the_same(tmp_path: Path, rule: str) -> None:
    tokenizer = make(pre=rule)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert_same(loaded, tokenizer, "hello the 1234<|start|> é e\u0301 <tool>\n\n x")
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


@given(st.text(st.sampled_from("helo wthe<|é\n1")))
def test_long_texts_are_encoded_as_short_ones(text: str) -> None:
    """From some length on the library merges; before, the package itself does."""
    short, long = make(), make()
    long.encode("x" * long.vocab_size)
    assert long.encode(text) == short.encode(text)


@pytest.mark.parametrize(
    "damage",
    ["not json", "[" * 100_000, "[]", "{}", '{"model": []}', '{"model": {"vocab": {}, "merges": []}}'],
    ids=["text", "nested", "list", "empty", "model", "foreign"],
)
def test_other_files_are_format_errors(tmp_path: Path, damage: str) -> None:
    (tmp_path / "tokenizer.json").write_text(damage)
    with pytest.raises(FormatError):
        Tokenizer.load(tmp_path / "tokenizer.json")


def base64(*numbers: int, width: int = 4) -> str:
    return b64encode(b"".join(number.to_bytes(width, "little") for number in numbers)).decode()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("subsecond_tokenizer", 1),
        ("vocab_size", 10**12),
        ("vocab_size", 3),
        ("model", "unigram"),
        ("normalizer", 1),
        ("normalizer", {"type": "Replace", "pattern": {"String": "a"}}),
        ("pre_tokenizer", {"type": "Sequence", "pretokenizers": 3}),
        ("ignore_merges", "x"),
        ("strips_first_space", None),
        ("control", [10**6]),
        ("user_defined", "x"),
        ("strips", [[1, 2]]),
        ("eos_ids", [None]),
        ("bos_id", -1),
        ("unk_id", 10**6),
        ("add_bos", 1),
        ("table", []),
        ("table", {}),
        ("table.blob", "!"),
        ("table.blob", 5),
        ("table.blob", base64(1)),
        ("table.ends", base64(1, 2, 3)),
        ("table.ends", base64(1, width=2)),
        ("table.ends", base64(*range(len(TOKENS), 0, -1))),
        ("table.hashed", base64(*[10**6] * 265)),
        ("table.hashes", base64(1)),
        ("table.ranks", base64(1)),
    ],
)
def test_damaged_fields_are_format_errors(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    content = json.loads(path.read_text())
    owner, _, name = field.rpartition(".")
    (content[owner] if owner else content)[name] = value
    path.write_text(json.dumps(content))
    with pytest.raises(FormatError):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    ("name", "width", "seed"),
    [
        (name, width, seed)
        for name, width in [("hashes", 4), ("hashed", 4), ("pairs", 8), ("ranks", 4)]
        for seed in range(5)
    ],
)
def test_wrong_tables_give_wrong_tokens_or_format_errors(tmp_path: Path, name: str, width: int, seed: int) -> None:
    path = tmp_path / "tokenizer.json"
    TOKENIZER.save(path)
    content = json.loads(path.read_text())
    size, chance = len(b64decode(content["table"][name])) // width, random.Random(seed)
    limit = len(TOKENS) if name == "hashed" else 2 ** (8 * width)
    content["table"][name] = base64(*(chance.randrange(limit) for _ in range(size)), width=width)
    path.write_text(json.dumps(content))
    with suppress(FormatError):
        loaded = Tokenizer.load(path)
        for text in ("hello the world", "hello the world" * 100):
            assert all(0 <= token_id < len(TOKENS) for token_id in loaded.encode(text))


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        Tokenizer.load(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"model": "t5"}, UnsupportedError),
        ({"model": None}, UnsupportedError),
        ({"pre": "unheard-of"}, UnsupportedError),
        ({"pre": 5}, FormatError),
        ({"tokens": None}, FormatError),
        ({"tokens": []}, FormatError),
        ({"tokens": [1, 2]}, FormatError),
        ({"tokens": ["a", "b"], "token_type": None}, FormatError),
        ({"merges": None}, FormatError),
        ({"token_type": [1]}, FormatError),
        ({"eos_token_id": 10**6}, FormatError),
        ({"bos_token_id": "1"}, FormatError),
        ({"add_bos_token": 3}, FormatError),
    ],
)
def test_unusable_metadata_is_refused(changes: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        Tokenizer.from_gguf({**metadata(), **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}})


@pytest.mark.parametrize("merge", ["a", "a b c", "a ", "zz a", "\udcff a"])
def test_merges_that_do_not_fit_are_refused(merge: str) -> None:
    content = {**metadata(), "tokenizer.ggml.merges": ["h e", merge]}
    with pytest.raises(FormatError):
        Tokenizer.from_gguf(content).encode("a" * len(TOKENS))


def test_an_unknown_rule_names_the_nearest_known_one() -> None:
    with pytest.raises(UnsupportedError, match=r"'qwen-2'.*nearest: qwen2\b"):
        make(pre="qwen-2")


def test_white_space_tokens_belong_to_ordinary_text() -> None:
    kinds = [*metadata()["tokenizer.ggml.token_type"], TokenKind.USER_DEFINED]  # type: ignore[misc]
    tokenizer = make(extra_tokens=["\t\t"], token_type=kinds)
    assert tokenizer.encode("a\t\tb") == [ID["a"], len(TOKENS), ID["b"]]
    assert tokenizer.decode([ID["a"], len(TOKENS)]) == "a\t\t"
    assert "\t\t" not in tokenizer.control_tokens
