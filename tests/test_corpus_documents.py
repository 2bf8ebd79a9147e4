"""Documents: the standard library's splits, and files that cannot be read."""

import errno
import re

import pytest

from ropepatch.corpus import HELD_OUT_MODULES, load_documents, read_documents, standard_library
from ropepatch.errors import DataError


@pytest.fixture(scope="module")
def splits():
    return standard_library("train"), standard_library("held_out")


def test_every_held_out_module_exists_and_is_whole(splits):
    _, held_out = splits
    assert [document.name for document in held_out] == sorted(HELD_OUT_MODULES)
    assert len(HELD_OUT_MODULES) >= 30
    # 2112 tokens at about three characters each.
    assert sum(len(document.text) // (3 * 2112) for document in held_out) >= 60
    assert min(len(document.text) for document in held_out) > 3 * 2500


def test_no_held_out_module_is_trained_on(splits):
    train, held_out = splits
    assert not {document.name for document in train} & set(HELD_OUT_MODULES)
    assert not {document.text for document in train} & {document.text for document in held_out}


def test_held_out_modules_have_no_near_copies_in_training(splits):
    train, held_out = splits
    known = set().union(*(_passages(document.text) for document in train))
    for document in held_out:
        passages = _passages(document.text)
        assert len(passages & known) / len(passages) < 0.05, document.name


def test_tests_named_after_held_out_modules_are_left_out(splits):
    """In full, or by their last part only: test_minidom is of xml.dom.minidom."""
    names = {document.name for document in splits[0]}
    in_full = {"test.test_argparse", "test.test_http_cookiejar", "test.test_tarfile"}
    by_last_part = {"test.test_minidom", "test.test_email.test_message"}
    assert not names & (in_full | by_last_part)


def test_documents_come_in_the_same_order_every_time(splits):
    train, _ = splits
    names = [document.name for document in train]
    assert names == sorted(names)
    assert len(set(names)) == len(names)
    assert standard_library("train") == train


def test_a_directory_gives_one_document_per_file(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.txt").write_text("third")
    (tmp_path / ".hidden").write_text("no")
    (tmp_path / "a.txt").write_text("first")
    documents = load_documents(str(tmp_path), "train")
    assert [(document.name, document.text) for document in documents] == [
        ("a.txt", "first"),
        ("b.txt", "second"),
        ("inner/a.txt", "third"),
    ]


def test_a_file_is_one_document(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text("Grüße", encoding="utf-8")
    assert [(document.name, document.text) for document in read_documents(file)] == [
        ("book.txt", "Grüße")
    ]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\x7fELF\0\0", "is binary"),
        (b"caf\xe9", r"is not UTF-8 text \(byte 3"),
    ],
)
def test_a_file_without_text_is_refused(tmp_path, content, complaint):
    file = tmp_path / "file.txt"
    file.write_bytes(content)
    with pytest.raises(DataError, match=f"{re.escape(str(file))} {complaint}"):
        read_documents(file)


def test_a_file_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    file = tmp_path / "file.txt"
    file.write_text("text")
    monkeypatch.setattr(type(file), "read_bytes", refuse)
    with pytest.raises(DataError, match=r"file\.txt cannot be read: Permission denied"):
        read_documents(file)


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no file or directory at .*nowhere"):
        read_documents(tmp_path / "nowhere")


def test_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no files"):
        read_documents(tmp_path)


def _passages(text):
    """Every run of eight consecutive words."""
    words = text.split()
    return {hash(tuple(words[start : start + 8])) for start in range(len(words) - 7)}
