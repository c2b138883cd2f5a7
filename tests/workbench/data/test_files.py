"""A file is read as what is in it, whatever its name says; what can't be read says what to type."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import pytest
from tests.paths import SHARED
from tests.workbench.tiny import write_jsonl

from paca import PacaError
from paca.workbench.data.documents import Place, joined, read_sources

pytestmark = pytest.mark.road("sources")

CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "中文"}]}
CASES = SHARED / "cases" / "road"
LINES = "".join(json.dumps(row) + "\n" for row in [CHAT, CHAT])
# Each is two rows of JSON, written in one of the ways in which people write them.
WRITTEN = {
    "lines": LINES,
    "lines with blanks": LINES.replace("\n", "\n\n"),
    "unescaped": json.dumps(CHAT, ensure_ascii=False) + "\n" + json.dumps(CHAT, ensure_ascii=False),
    "list": json.dumps([CHAT, CHAT]),
    "indented list": json.dumps([CHAT, CHAT], indent=2),
}
NAMES = ["a.jsonl", "a.ndjson", "a.json", "a.txt", "a.dat", "a", "a.md", "a.jsonl.txt", "A.JSON"]


def read(*paths, **place):
    names = list(map(str, paths))
    return joined(names, read_sources(names, Place(**place)))


def error_of(path, **place):
    with pytest.raises(PacaError) as caught:
        read(path, **place)
    return str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("written", WRITTEN)
def test_rows_of_json_are_recognised_under_every_name(tmp_path, name, written):
    (tmp_path / name).write_text(WRITTEN[written], encoding="utf-8")
    documents = read(tmp_path / name)
    assert documents.rows == [CHAT, CHAT]
    assert not documents.continuous
    assert all(row.place.startswith(str(tmp_path / name)) for row in documents.rows)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a"])
@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
def test_compressed_rows_are_read(tmp_path, name, compress, suffix):
    path = tmp_path / (name + suffix)
    path.write_bytes(compress(LINES.encode()))
    assert read(path).rows == [CHAT, CHAT]


def test_other_compressed_files_are_read_too(tmp_path):
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"words"))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"instruction,output\na,b\n"))
    assert read(tmp_path / "a.txt.gz").rows == [{"text": "words"}]
    assert read(tmp_path / "a.txt.gz").continuous
    assert read(tmp_path / "a.csv.gz").rows[0]["messages"][1]["content"] == "b"
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(LINES.encode())[:-12])
    assert "cut.jsonl.gz can't be read: " in error_of(tmp_path / "cut.jsonl.gz")
    (tmp_path / "a.pkl.gz").write_bytes(gzip.compress(b"x"))
    assert "can hold pickles" in error_of(tmp_path / "a.pkl.gz")


def test_columns_divided_by_tabs(tmp_path):
    (tmp_path / "a.tsv").write_text('instruction\toutput\n"a, b"\tc\n')
    assert [turn["content"] for turn in read(tmp_path / "a.tsv").rows[0]["messages"]] == ["a, b", "c"]


def archives(path):
    """Bytes of kinds that hold data which is not read, and what is said of each."""
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a.jsonl", LINES)
    with tarfile.open(fileobj=tarred, mode="w") as archive:
        member = tarfile.TarInfo("a.jsonl")
        member.size = len(LINES)
        archive.addfile(member, io.BytesIO(LINES.encode()))
    return {
        "zip": (zipped.getvalue(), f"a zip archive: unzip {path}, and name what was in it."),
        "tar": (tarred.getvalue(), f"a tar archive: tar -xf {path}, and name what was in it."),
        "tgz": (gzip.compress(tarred.getvalue()), f"a tar archive: tar -xf {path}, and name what was in it."),
        "zstd": (b"\x28\xb5\x2f\xfd rest", f"compressed with zstd: zstd -d {path} -o "),
        "utf-16": (LINES.encode("utf-16"), f"UTF-16: iconv -f UTF-16 -t UTF-8 {path} > utf8.txt"),
        "parquet": (b"PAR1 rest", "Parquet: rename it to "),
        "pdf": (b"%PDF-1.7 rest", f"a PDF: pdftotext {path} text.txt"),
    }


@pytest.mark.parametrize("kind", archives(""))
@pytest.mark.parametrize("name", ["a.zip", "a.jsonl", "a.txt", "a.json.zip"])
def test_what_is_not_read_says_what_to_type(tmp_path, kind, name):
    path = tmp_path / name
    content, said = archives(path)[kind]
    path.write_bytes(content)
    assert f"The data file {path} is not UTF-8 text but {said}" in error_of(path)


def test_zero_bytes_are_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"abc\0def")
    assert "a.txt is not text: it holds zero bytes" in error_of(tmp_path / "a.txt")


@pytest.mark.parametrize("indent", [None, 1])
def test_one_object_in_place_of_rows(tmp_path, indent):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": 1, "data": [CHAT]}, indent=indent))
    assert f"not one object. Its list is under 'data': jq -c '.[\"data\"][]' {path} > rows.jsonl" in error_of(path)
    path.write_text(json.dumps(CHAT, indent=indent))
    assert read(path).rows == [CHAT]


@pytest.mark.parametrize(
    "text", ['{"not": "closed"\nwords', "[1, 2, 3]", "{braces} of a text", "[a link](x)", "1\n2\n"]
)
def test_text_that_begins_like_json_is_text(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    documents = read(tmp_path / "a.txt")
    assert documents.rows == [{"text": text}]
    assert documents.continuous


def test_json_of_no_known_format_is_not_trained_as_text_unless_told_to(tmp_path):
    path = tmp_path / "events.log"
    path.write_text('{"level": "info", "message": "x"}\n' * 2)
    message = error_of(path)
    assert "are those of no known format" in message
    assert message.endswith(f"Add data.format=text to read {str(path)!r} as plain text.")
    assert read(path, format="text").continuous
    assert read(path, format="text").rows == [{"text": path.read_text()}]


def test_a_named_format_holds_under_any_name(tmp_path):
    (tmp_path / "a.txt").write_text(LINES)
    assert read(tmp_path / "a.txt", format="messages").rows == [CHAT, CHAT]
    assert "has no 'instruction'" in error_of(tmp_path / "a.txt", format="alpaca")


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    for name in ("b.txt", "a.md", "more/c.txt", "unit-test.txt", "training.txt"):
        (folder / name).write_text(f"{name}\n\nof two paragraphs\n")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "x.txt").write_text("hidden")
    return folder


def test_a_folder_of_documents_is_what_the_list_of_its_files_is(folder):
    names = ["a.md", "b.txt", "more/c.txt", "training.txt", "unit-test.txt"]
    whole, listed = read(folder), read(*(folder / name for name in names))
    assert whole.rows == listed.rows
    assert [row["text"] for row in whole.rows] == [f"{name}\n\nof two paragraphs\n" for name in names]
    assert whole.continuous
    assert read("texts", folder=str(folder.parent)).rows == whole.rows


def test_folders_named_after_splits_are_these(folder):
    (folder / "train").mkdir()
    (folder / "train" / "d.txt").write_text("d")
    assert [row["text"] for row in read(folder).rows] == ["d"]
    assert "can't be read as a data set" in error_of(folder, split="validation")


def test_compressed_documents_and_rows_in_a_folder(folder, tmp_path):
    (folder / "d.txt.gz").write_bytes(gzip.compress(b"d"))
    assert [row["text"] for row in read(folder).rows].count("d") == 1
    write_jsonl(folder / "rows.jsonl", [CHAT])
    assert "holds rows (rows.jsonl) and documents (a.md)." in error_of(folder)


def test_a_data_set_with_a_card_and_a_licence_is_a_data_set(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", [{"text": "x"}])
    (folder / "README.md").write_text("# About\n")
    (folder / "LICENSE.txt").write_text("MIT\n")
    assert read(folder).rows == [{"text": "x"}]
    (folder / "README.md").write_text("---\nconfigs:\n- config_name: one\n  data_files: train.jsonl\n---\n")
    assert read(folder).rows == [{"text": "x"}]


@pytest.mark.skipif(not CASES.is_dir(), reason="the shared cases are not there")
def test_sources_as_people_have_them():
    assert len(read(CASES / "folder_txt").rows) == 3
    assert read(CASES / "rows.txt").rows[0]["messages"][1]["content"] == "Eine Sprache — 漢字."
