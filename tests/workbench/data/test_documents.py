"""Data sources and the errors they give."""

import json
import pickle
from pathlib import Path

import datasets
import pytest
from tests.workbench.tiny import write_jsonl

from paca import PacaError
from paca.workbench.data.documents import Place, joined, python_reference, read_sources

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def read_documents(source, subset=None, split="train", **place):
    names = source if isinstance(source, list) else [source]
    return joined(names, read_sources(names, Place(subset=subset, split=split, **place)))


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
    assert not documents.is_text
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
    assert (
        lines[1]
        == f"{path}:3: has no 'text', as rows of the format 'text' have; its keys: 'txt'; did you mean 'text'?"
    )
    assert lines[2] == f"{path}:4: expected an object with keys such as 'text', got list"
    assert lines[3] == f"{path}:5: 'text' must be a string, got int"


def test_only_the_first_bad_lines_are_shown(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("x\n" * 8, encoding="utf-8")
    assert error_of(str(path)).endswith(f"{path}:5: not valid JSON (Expecting value, column 1): x\nand 3 more")


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([], "'messages' must be a list"),
        ([{"role": "user"}], "message 1: must hold strings 'role' and 'content', got {'role': 'user'}"),
        ([{"role": "user", "content": "a"}], "no message has the role 'assistant'"),
        ([{"role": "assistant", "content": "a"}], "the first message has the role 'assistant'"),
    ],
)
def test_bad_conversations(tmp_path, messages, expected):
    path = write_jsonl(tmp_path / "a.jsonl", [CHAT, {"messages": messages}])
    assert f"{path}:2: {expected}" in error_of(str(path))


def test_formats_do_not_mix_within_a_file(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [CHAT, {"text": "x"}])
    assert f"{path}:2: has no 'messages', as rows of the format 'messages' have; its keys: 'text'" in error_of(
        str(path)
    )


def test_text_and_conversations_are_mixed_by_weight_only(tmp_path):
    paths = [write_jsonl(tmp_path / f"{number}.jsonl", [row]) for number, row in enumerate((CHAT, {"text": "x"}))]
    assert "Say in which proportion with data.weights, such as data.weights=[1, 1]" in error_of(list(map(str, paths)))


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
    assert f"The data set '{folder}', row 0: its keys ('content') are those of no known format; known: " in message


def test_a_name_that_is_nothing_says_what_it_could_have_been():
    message = error_of("python-referense")
    assert (
        "no file or folder 'python-referense' here; it is no built-in (python-reference); did you mean 'pyt" in message
    )
    assert "could not be loaded as a data set of the Hub" in message


@pytest.mark.road("problem-list")
@pytest.mark.parametrize("name", ["./trian", "../no/such", "~/trian", "data/sub/trian", "my data/trian", "trian/"])
def test_a_missing_path_is_a_missing_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").mkdir()
    message = error_of(name)
    assert message.startswith("There is no data file")
    assert "Hub" not in message
    assert ("did you mean 'train'" in message) is (name in ("./trian", "trian/"))


@pytest.mark.road("problem-list")
def test_what_may_be_either_names_the_near_path_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "train").mkdir(parents=True)
    assert error_of("data/trian").startswith(
        "There is no file or folder 'data/trian' here; did you mean 'data/train'?"
    )
    (tmp_path / "data" / "train" / "a.xyz").touch()
    assert error_of("data/train").startswith("The folder 'data/train' can't be read as a data set: ")


def test_a_subset_of_a_file_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    assert "data.subset = 'one' says nothing about" in error_of(str(tmp_path / "a.txt"), "one")


def test_names_are_those_of_a_folder_where_one_is_given(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "x"}])
    assert read_documents("a.jsonl", folder=str(tmp_path)).rows == [{"text": "x"}]
    assert f"There is no data file '{tmp_path / 'owner' / 'name'}'" in error_of("owner/name", folder=str(tmp_path))
    assert f"There is no data file '{tmp_path / 'python-reference'}'" in error_of(
        "python-reference", folder=str(tmp_path)
    )


def test_what_may_hold_a_pickle_is_not_opened(tmp_path):
    path = tmp_path / "a.pt"
    path.write_bytes(pickle.dumps(_Touch(tmp_path / "ran")))
    assert "of a kind that can hold pickles, which run code when they are read" in error_of(str(path))
    path.rename(tmp_path / "a.jsonl")
    assert "is not UTF-8 text" in error_of(str(tmp_path / "a.jsonl"))
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(_Touch(tmp_path / "ran")))  # it would have
    assert (tmp_path / "ran").exists()


class _Touch:
    """Unpickled, it makes a file; protocol 4's frame is no UTF-8."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


QUESTION = 'What is 2 + 2?,1,2,3,4,D\n"Which, then?",a,b,c,None,A\n'


def test_the_authors_mmlu_files_have_no_header(tmp_path):
    for name in ("high_school_maths_val.csv", "world_history_val.csv"):
        (tmp_path / name).write_text(QUESTION)
    one, folder = read_documents(str(tmp_path / "world_history_val.csv")), read_documents(str(tmp_path))
    assert len(one.rows) == 2
    assert len(folder.rows) == 4
    assert folder.rows[0] == {
        "prompt": "The following are multiple choice questions (with answers) about high school maths.\n\n"
        "What is 2 + 2?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:",
        "completion": " D",
    }
    assert one.rows[1]["prompt"].endswith("about world history.\n\nWhich, then?\nA. a\nB. b\nC. c\nD. None\nAnswer:")


def test_csv_with_a_header(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('instruction,input,output\n"Say, twice",yes,"yes\nyes"\n')
    assert read_documents(str(path)).rows == [
        {"messages": [{"role": "user", "content": "Say, twice\n\nyes"}, {"role": "assistant", "content": "yes\nyes"}]}
    ]
    path.write_text("instruction,output\na,b\nc\n")
    assert f"{path}, row 3: has 1 columns where the file has 2" in error_of(str(path))
    path.write_text("name,age\nx,1\n")
    assert "has the columns ['name', 'age']: neither those of a known format nor MMLU's six" in error_of(str(path))
    assert read_documents(str(path), format="text").rows == [{"text": "name,age\nx,1\n"}]


def test_json_lists_and_parquet(tmp_path):
    rows = [{"text": "x"}, {"text": "y"}]
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    write_jsonl(tmp_path / "b.json", rows)
    for name in ("a.json", "a.parquet", "b.json"):
        documents = read_documents(str(tmp_path / name))
        assert documents.rows == rows
        assert not documents.continuous
