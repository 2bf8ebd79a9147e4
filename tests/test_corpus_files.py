"""Files of the reader: JSON Lines, and directories that hold more than text."""

import json
import warnings

import pytest

from ropepatch.corpus import load_documents, text_files
from ropepatch.errors import DataError


def texts(path, **options):
    return [(document.name, document.text) for document in text_files(path, **options)]


def write_lines(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def test_every_line_of_json_is_a_document(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", '{"text": "one\\ntwo"}', "", '{"text": "Grüße"}')
    assert texts(path) == [("a.jsonl:1", "one\ntwo"), ("a.jsonl:3", "Grüße")]


def test_the_field_of_the_text_can_be_named(tmp_path):
    path = write_lines(tmp_path / "a.ndjson", '{"text": 3, "body": "one"}')
    assert texts(path, text_field="body") == [("a.ndjson:1", "one")]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"text": "cut', r"a\.jsonl, line 2, is not JSON \(Invalid control character at\);"),
        ('{"text": }', r"a\.jsonl, line 2, is not JSON \(Expecting value\);"),
        ('["text"]', r"a\.jsonl, line 2, is no object with fields, but \['text'\]"),
        ('{"body": "x", "id": 1}', r"a\.jsonl:2 has no field 'text'; the fields are body, id;"),
        ('{"text": 7, "id": 1}', r"a\.jsonl:2: the field 'text' is no text but int; .* text, id;"),
        ('{"text": "\\ud800"}', r"a\.jsonl:2: the field 'text' is no text \(surrogates"),
    ],
)
def test_a_line_that_cannot_be_read_is_refused_by_its_number(tmp_path, line, complaint):
    path = write_lines(tmp_path / "a.jsonl", '{"text": "fine"}', line)
    with pytest.raises(DataError, match=complaint):
        texts(path)


def test_json_lines_that_are_not_utf8_are_refused_by_number(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 1, is not JSON \('utf-8'"):
        texts(tmp_path / "a.jsonl")


def test_empty_documents_are_left_out_with_a_count(tmp_path):
    empty = [json.dumps({"text": text}) for text in ("", " \n", None, "")]
    path = write_lines(tmp_path / "a.jsonl", '{"text": "one"}', *empty)
    with pytest.warns(UserWarning, match=r"a\.jsonl: 4 of 5 .*: a\.jsonl:2, a\.jsonl:3, .*:4, …$"):
        assert len(texts(path)) == 1


def test_a_directory_mixes_text_and_json_lines_by_name(tmp_path):
    (tmp_path / "b.txt").write_text("third")
    (tmp_path / "c.md").write_text("fourth")
    write_lines(tmp_path / "a.jsonl", '{"text": "first"}', '{"text": "second"}')
    assert [text for _, text in texts(tmp_path)] == ["first", "second", "third", "fourth"]


def test_files_of_a_directory_that_are_no_text_are_left_out_and_named_once(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.bin").write_bytes(b"\x7fELF\0")
    (tmp_path / "c.latin").write_bytes(b"caf\xe9")
    (tmp_path / "d.py").write_text("")
    corpus = text_files(tmp_path)
    with pytest.warns(UserWarning, match=r"3 of 4 .* no text in UTF-8: b\.bin, c\.latin, d\.py$"):
        assert [document.text for document in corpus] == ["text"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [document.text for document in corpus] == ["text"]


def test_a_directory_without_any_text_is_refused(tmp_path):
    (tmp_path / "b.bin").write_bytes(b"\0")
    with pytest.raises(DataError, match=r"has no text in b\.bin; put text into it"):
        texts(tmp_path)


def test_hidden_files_and_directories_of_a_repository_are_passed_over(tmp_path):
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("ref")
    (tmp_path / "a.py").write_text("pass")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert texts(tmp_path) == [("a.py", "pass")]


def test_patterns_choose_from_a_directory(tmp_path):
    (tmp_path / "src").mkdir()
    for name in ("a.py", "b.txt", "src/c.py", "src/d.md"):
        (tmp_path / name).write_text(name)
    assert [name for name, _ in texts(tmp_path, files=["*.py"])] == ["a.py", "src/c.py"]
    assert [name for name, _ in texts(tmp_path, files=["src/*", "*.txt"])] == [
        "b.txt",
        "src/c.py",
        "src/d.md",
    ]
    with pytest.raises(DataError, match=r"none of the 4 files below .* \(\*\.rs\)"):
        texts(tmp_path, files=["*.rs"])
    with pytest.raises(DataError, match=r"chooses from a directory, but .*a\.py is a file"):
        texts(tmp_path / "a.py", files=["*.py"])


def test_documents_are_read_anew_each_time(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", '{"text": "one"}')
    corpus = text_files(path)
    assert list(corpus) == list(corpus)


def test_evaluation_reads_the_same_files(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", '{"text": "one"}', '{"text": "two"}')
    assert [document.text for document in load_documents(str(path), "held_out")] == ["one", "two"]
