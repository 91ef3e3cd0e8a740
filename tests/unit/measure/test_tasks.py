"""Reading tasks and texts from lines of JSON, and judging free answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from subsecond.core.errors import InputError
from subsecond.measure import text_files
from subsecond.measure.tasks import contains_answer, is_exact, normalized, read_task
from subsecond.measure.text_files import packaged_tasks, packaged_texts, read_lines, read_text, read_texts


def written(folder: Path, *lines: object, name: str = "task.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_multiple_choice_takes_an_index_or_a_text(tmp_path: Path) -> None:
    task = read_task(
        written(
            tmp_path,
            {"question": "Up?", "choices": ["down", "up"], "answer": 1, "domain": "d", "language": "en"},
            {"text": "The sky is", "choices": ["blue", "green"], "answer": "blue"},
        )
    )
    assert (task.name, task.kind) == ("task", "multiple choice")
    first, second = task.items
    assert first.prompt == "Question: Up?\nAnswer:"
    assert (first.choices, first.answer, first.domain, first.language) == ((" down", " up"), 1, "d", "en")
    assert (second.prompt, second.answer, second.domain) == ("The sky is", 0, None)


def test_every_label_of_a_file_is_a_choice_of_every_text(tmp_path: Path) -> None:
    task = read_task(written(tmp_path, {"text": "Good.", "label": "pos"}, {"text": "Bad.", "label": "neg"}))
    assert task.kind == "classification"
    assert [item.choices for item in task.items] == [(" neg", " pos")] * 2
    assert [item.answer for item in task.items] == [1, 0]
    assert "neg, pos" in task.items[0].prompt


def test_free_answers_may_have_several_right_texts(tmp_path: Path) -> None:
    task = read_task(written(tmp_path, {"question": "2+2?", "answer": ["4", "four"]}, {"question": "a", "answer": "b"}))
    assert task.kind == "generation"
    assert [item.expected for item in task.items] == [("4", "four"), ("b",)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"question": "q", "choices": ["a"], "answer": 0}, r"line 1: field 'choices' is \['a'\]; .* 2 to 64"),
        ({"question": "q", "choices": ["a", "a"], "answer": 0}, "field 'choices'.*texts that differ"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "field 'answer' is 2.*index from 0 to 1"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "field 'answer' is True"),
        ({"question": "q", "choices": ["a", "b"], "answer": "c"}, "field 'answer' is 'c'"),
        ({"question": "q", "choices": ["a", "b"]}, "field 'answer' is missing"),
        ({"question": 1, "choices": ["a", "b"], "answer": 0}, "field 'question' is 1; it must be a text"),
        ({"question": " ", "answer": "x"}, "field 'question' is ' '"),
        ({"question": "q", "answer": ["!"]}, r"field 'answer' is \['!'\].*letters or digits"),
        ({"question": "q", "answer": 4}, "field 'answer' is 4"),
        ({"text": "t", "label": ""}, "field 'label' is ''"),
        ({"text": "t", "label": "only"}, "field 'label' is 'only'.*the file has 1 different"),
        ({"question": "q", "answer": "a", "domain": 3}, "field 'domain' is 3"),
        ({"prompt": "q"}, "line 1: it has the fields prompt; needed are"),
        ("[1]", r"line 1: it is \[1\]; each line must be a JSON object"),
        ("{", "line 1: it is not valid JSON"),
        ('{"a": 1, "a": 2}', "a key occurs twice"),
        ("", "has no line"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_task(written(tmp_path, line))
    assert "task.jsonl" in str(caught.value)


def test_the_number_of_the_bad_line_counts_empty_ones(tmp_path: Path) -> None:
    good = {"question": "q", "answer": "a"}
    with pytest.raises(InputError, match="line 3: field 'answer'"):
        read_task(written(tmp_path, good, "", {"question": "q", "answer": None}))
    with pytest.raises(InputError, match="line 2: it is a line of classification, the lines before are of generation"):
        read_task(written(tmp_path, good, {"text": "t", "label": "l"}))


def test_large_files_and_lines_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, {"text": "x" * 100})
    monkeypatch.setattr(text_files, "MAX_LINE_BYTES", 50)
    with pytest.raises(InputError, match="line 1: it has 112 bytes; allowed are 50"):
        list(read_lines(path))
    monkeypatch.setattr(text_files, "MAX_FILE_BYTES", 60)
    with pytest.raises(InputError, match="larger than 60 bytes"):
        list(read_lines(path))


def test_texts_come_whole_or_line_by_line(tmp_path: Path) -> None:
    plain = written(tmp_path, "One text.", name="a.txt")
    (text,) = read_texts(plain)
    assert (text.name, text.text, text.domain) == ("a.txt", "One text.\n", None)
    lines = written(tmp_path, {"text": "A", "domain": "law"}, {"text": "B", "name": "b"}, name="b.jsonl")
    assert [(each.name, each.text, each.domain) for each in read_texts(lines)] == [
        ("b.jsonl:1", "A", "law"),
        ("b", "B", None),
    ]
    with pytest.raises(InputError, match="there is no file"):
        read_texts(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(InputError, match="is empty"):
        read_text(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    with pytest.raises(InputError, match="not UTF-8"):
        read_text(tmp_path / "latin.txt")


@pytest.mark.parametrize(
    ("answer", "expected", "exact", "contained"),
    [
        ("The Atlantic Ocean.", ["atlantic ocean"], True, True),
        ("It is Rome, of course.", ["Rome"], False, True),
        ("42", ["4"], False, False),
        ("4.5", ["4"], False, False),
        ("-4", ["4"], False, False),
        ("It is \u22124.", ["-4"], False, True),
        ("1,000 euros", ["1000"], False, True),
        ("A", ["a"], True, True),
        ("  FOUR! ", ["4", "four"], True, True),
        ("答案是巴黎。", ["巴黎"], False, True),
        ("Roman", ["Rome"], False, False),
        ("", ["Rome"], False, False),
    ],
)
def test_answers_are_compared_by_words(answer: str, expected: list[str], exact: bool, contained: bool) -> None:
    assert is_exact(answer, expected) is exact
    assert contains_answer(answer, expected) is contained


def test_normalization_keeps_what_makes_an_answer_another() -> None:
    assert normalized("An  Éclair, a 3.5!") == "éclair 3.5"
    assert normalized("not true") != normalized("true")


def test_the_packaged_set_is_whole_and_says_where_it_is_from() -> None:
    texts = packaged_texts()
    assert len({text.name for text in texts}) == len(texts) >= 8
    assert {"english", "german", "french", "spanish", "italian"} <= {str(text.language) for text in texts}
    assert all((text.domain and 300 <= len(text.text.split()) <= 1000) or text.language == "python" for text in texts)
    readme = (text_files.DATA_FOLDER / "README.md").read_text(encoding="utf-8")
    files = sorted(path.name for path in (text_files.DATA_FOLDER / "texts").iterdir())
    assert files == sorted(f"{text.name}.txt" for text in texts)
    assert [name for name in files if f"`{name}` |" not in readme] == []
    tasks = [read_task(path) for path in packaged_tasks()]
    assert sorted(task.kind for task in tasks) == ["classification", "generation", "multiple choice"]
    assert sum(len(task.items) for task in tasks) >= 36
    assert all(item.domain and item.language for task in tasks for item in task.items)
    size = sum(path.stat().st_size for path in text_files.DATA_FOLDER.rglob("*") if path.is_file())
    assert size <= 60_000
