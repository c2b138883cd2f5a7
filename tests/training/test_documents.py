"""Data sources and the errors they give."""

import json

import pytest
from tests.training.tiny import write_jsonl

from paca import PacaError
from paca.training.documents import python_reference, read_documents

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def error_of(*arguments, **options):
    with pytest.raises(PacaError) as caught:
        read_documents(*arguments, **options)
    return str(caught.value)


def test_text_files_are_continuous(tmp_path):
    for name in ("a.txt", "b"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    documents = read_documents([str(tmp_path / "a.txt"), str(tmp_path / "b")])
    assert documents.rows == [{"text": "a.txt"}, {"text": "b"}]
    assert documents.continuous


def test_jsonl_keeps_text_or_messages_only(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "x", "id": 1}])
    assert read_documents(str(path)).rows == [{"text": "x"}]
    documents = read_documents(str(write_jsonl(tmp_path / "b.jsonl", [{**CHAT, "id": 1}])))
    assert documents.rows == [CHAT]
    assert documents.is_chat
    assert not documents.continuous


def test_line_separators_inside_a_string_end_no_line(tmp_path):
    """U+2028 is legal inside JSON strings, but `str.splitlines` cuts there."""
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a\u2028b"}, ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert read_documents(str(path)).rows == [{"text": "a\u2028b"}]


def test_python_reference_is_sorted_by_topic():
    rows = read_documents("python-reference").rows
    assert rows == python_reference()
    assert len(rows) > 50
    assert rows[0]["text"].startswith('The "assert" statement')


def test_a_missing_file_names_near_ones(tmp_path):
    (tmp_path / "train.jsonl").touch()
    message = error_of(str(tmp_path / "trian.jsonl"))
    assert f"There is no data file '{tmp_path / 'trian.jsonl'}'; did you mean '{tmp_path / 'train.jsonl'}'?" in message
    assert "there is no folder" in error_of(str(tmp_path / "nowhere" / "a.txt"))


def test_bad_lines_are_named_with_file_and_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "good"}\n{"text": \n{"txt": "x"}\n[1]\n{"text": 3}\n', encoding="utf-8")
    lines = error_of(str(path)).split("\n")
    assert lines[0] == f'{path}:2: not valid JSON (Expecting value, column 10): {{"text": '
    assert lines[1] == f"{path}:3: has neither 'text' nor 'messages'; its keys: 'txt'; did you mean 'text'?"
    assert lines[2] == f"{path}:4: expected an object with 'text' or 'messages', got list"
    assert lines[3] == f"{path}:5: 'text' must be a string, got int"


def test_only_the_first_bad_lines_are_shown(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("x\n" * 8, encoding="utf-8")
    assert error_of(str(path)).endswith(f"{path}:5: not valid JSON (Expecting value, column 1): x\nand 3 more")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "'messages' must be a list"),
        ([{"role": "user"}], "message 1 must hold strings 'role' and 'content', got {'role': 'user'}"),
        ([{"role": "user", "content": "a"}], "no message has the role 'assistant'"),
        ([{"role": "assistant", "content": "a"}], "the first message has the role 'assistant'"),
    ],
)
def test_bad_conversations(tmp_path, messages, expected):
    path = write_jsonl(tmp_path / "a.jsonl", [CHAT, {"messages": messages}])
    assert f"{path}:2: {expected}" in error_of(str(path))


def test_kinds_do_not_mix(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [CHAT, {"text": "x"}])
    assert "mixes conversations with plain text" in error_of(str(path))


def test_files_that_hold_nothing_or_no_text(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    assert "empty.txt is empty" in error_of(str(tmp_path / "empty.txt"))
    assert "binary.txt is not UTF-8 text" in error_of(str(tmp_path / "binary.txt"))


@pytest.fixture
def data_set(tmp_path):
    """What a data set on the Hub looks like, in a local folder: two subsets, two splits."""
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("one", "two"):
        for split in ("train", "test"):
            write_jsonl(folder / f"{name}-{split}.jsonl", [{"text": f"{name} {split}", "id": 1}])
    configs = "".join(
        f"- config_name: {name}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {name}-{split}.jsonl\n" for split in ("train", "test"))
        for name in ("one", "two")
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return str(folder)


@pytest.mark.parametrize(("subset", "split"), [("one", "train"), ("two", "train"), ("two", "test")])
def test_data_sets_have_subsets_and_splits(data_set, subset, split):
    assert read_documents(data_set, subset, split).rows == [{"text": f"{subset} {split}"}]


def test_a_data_set_without_the_columns(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [{"content": "x"}])
    message = error_of(str(folder))
    assert f"The data set '{folder}', row 0: has neither 'text' nor 'messages'; its keys: 'content'" in message


def test_a_name_that_is_nothing_says_what_it_could_have_been():
    message = error_of("python-referense")
    assert "neither a file nor a built-in (python-reference); did you mean 'python-reference'?" in message
    assert "could not be loaded as a data set" in message


def test_a_subset_of_a_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    assert "data.subset = 'one' says nothing about" in error_of(str(tmp_path / "a.txt"), "one")
