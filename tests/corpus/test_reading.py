"""Test that compressed files, encodings and long documents are read right, or are errors of the file or document."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import tracemalloc
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bioptimus_hf.corpus.conll import read_conll
from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.corpus.documents import Document
from bioptimus_hf.corpus.formats import FORMATS, READABLE, DocumentReader
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.corpus.reading import ReadOptions
from bioptimus_hf.errors import InputError

TEXT = "Aspirin in sévère asthma – β."
TEXT_FORMATS = {
    "a.txt": f"{TEXT}\n{TEXT}\n",
    "a.jsonl": 2 * (json.dumps({"text": TEXT}, ensure_ascii=False) + "\n"),
    "a.pubtator": f"1|t|{TEXT}\n\n2|t|{TEXT}\n\n",
    "a.json": json.dumps(
        {"documents": [{"id": i, "passages": [{"offset": 0, "text": TEXT}]} for i in (1, 2)]}, ensure_ascii=False
    ),
    "a.conll": 2 * ("".join(f"{word}\tO\n" for word in TEXT.split()) + "\n"),
}
WIDE = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")


def read(path: Path, on_error: Any = "raise", **options: Any) -> list[Document]:
    return list(DocumentReader(path, on_error=on_error, options=ReadOptions(**options)))


def packed(content: bytes, name: str) -> bytes:
    return gzip.compress(content) if name.endswith(".gz") else content


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("ending", [end for name in READABLE for end in FORMATS[name].endings if end.endswith(".gz")])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not a complete gzip file (it is empty): fetch it again"),
        (b"Aspirin.\n", "is not a complete gzip file (Not a gzipped file (b'As')): fetch it again"),
        (gzip.compress(gzip.compress(b"Aspirin.\n")), "is compressed once more (gzip): decompress it"),
    ],
    ids=["empty", "plain", "twice"],
)
def test_what_is_no_gzip_file(ending: str, content: bytes, problem: str, on_error: str, tmp_path: Path) -> None:
    file = tmp_path / f"a{ending}"
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        read(file, on_error)
    assert problem in str(error.value)
    assert str(error.value).startswith(str(file))


@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_a_gzip_file_that_is_cut_or_has_something_after_it(name: str, tmp_path: Path) -> None:
    content = gzip.compress(TEXT_FORMATS[name].encode())
    for damaged in (content[:-6], content + b"garbage"):
        (tmp_path / f"{name}.gz").write_bytes(damaged)
        with pytest.raises(InputError, match="is not a complete gzip file"):
            read(tmp_path / f"{name}.gz", "skip")
    (tmp_path / f"{name}.gz").write_bytes(content + content)  # members may follow each other, zeros may pad them
    if name != "a.json":
        assert len(read(tmp_path / f"{name}.gz")) == 4
    (tmp_path / f"{name}.gz").write_bytes(content + bytes(100))
    assert len(read(tmp_path / f"{name}.gz")) == 2


def test_an_empty_gzip_file_is_an_error_wherever_one_is_opened(tmp_path: Path) -> None:
    for name in ("a.tsv.gz", "a.txt.gz"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"a\.txt\.gz is not a complete gzip file \(it is empty\)"):
        load_corpus(tmp_path / "a.txt.gz")
    with pytest.raises(InputError, match=r"a\.tsv\.gz is not a complete gzip file \(it is empty\)"):
        read_conll(tmp_path / "a.tsv.gz")


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_a_compressed_file_with_the_name_of_a_plain_one(compress: Any, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(compress(TEXT_FORMATS[name].encode()))
    with pytest.raises(InputError, match=r"a\.\w+ is compressed \(\w+\): decompress it, or name a gzip file \.gz"):
        read(tmp_path / name, "skip")


def test_empty_files(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl", "a.pubtator", "a.conll"):
        for ending in ("", ".gz"):  # a member of a gzip file may be empty
            (tmp_path / f"{name}{ending}").write_bytes(packed(b"", f"{name}{ending}"))
            assert read(tmp_path / f"{name}{ending}") == []
    (tmp_path / "a.parquet").touch()
    with pytest.raises(InputError, match="is not a complete Parquet file"):
        read(tmp_path / "a.parquet", "skip")


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_text_of_another_encoding_is_an_error_of_the_file(
    name: str, encoding: str, ending: str, tmp_path: Path
) -> None:
    """With and without byte order mark, and however documents that can't be read are treated."""
    file = tmp_path / f"{name}{ending}"
    expected = read_text_format(tmp_path, name)
    file.write_bytes(packed(TEXT_FORMATS[name].encode(encoding), file.name))
    for errors in ("strict", "replace"):
        with pytest.raises(InputError, match=f"{encoding.upper()} text.*: convert the file, or set encoding to utf-"):
            read(file, "skip", errors=errors)
    assert [document.text for document in read(file, encoding=encoding)] == expected
    marked = "\ufeff".encode(encoding) if encoding[-3:] in ("-le", "-be") else b""
    file.write_bytes(packed(marked + TEXT_FORMATS[name].encode(encoding), file.name))
    assert [document.text for document in read(file, encoding=encoding)] == expected


def read_text_format(folder: Path, name: str) -> list[str]:
    (folder / f"plain-{name}").write_text(TEXT_FORMATS[name], encoding="utf-8")
    return [document.text for document in read(folder / f"plain-{name}")]


@pytest.mark.parametrize("name", TEXT_FORMATS)
def test_an_encoding_that_is_not_that_of_the_file(name: str, tmp_path: Path) -> None:
    content = TEXT_FORMATS[name]
    (tmp_path / name).write_text(content, encoding="utf-8")
    for encoding in WIDE:
        with pytest.raises(InputError, match="UTF-8 text: convert the file, or set encoding to utf-8"):
            read(tmp_path / name, "skip", encoding=encoding)
    (tmp_path / name).write_text(content, encoding="utf-8-sig")
    with pytest.raises(InputError, match="UTF-8 text: convert the file, or set encoding to utf-8"):
        read(tmp_path / name, "skip", encoding="latin-1")
    assert len(read(tmp_path / name, encoding="utf-8-sig")) == 2
    (tmp_path / name).write_bytes(content.encode("utf-16-le"))
    with pytest.raises(InputError, match="needs a byte order mark: convert the file, or set encoding to utf-16-le or"):
        read(tmp_path / name, "skip", encoding="utf-16")


@given(
    text=st.text(st.characters(codec="gb18030", exclude_categories=["Cs"]), max_size=30),
    encoding=st.sampled_from([*WIDE, "gb18030", "utf-7", "utf-8"]),
    ending=st.sampled_from(["\n", "\r\n"]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_lines_are_those_of_the_text_in_any_encoding(text: str, encoding: str, ending: str, tmp_path: Path) -> None:
    """U+0A0A and the like contain the byte of a line end; a chunk may end within a character."""
    line = text.replace("\n", "").rstrip("\r").replace("\0", "")
    lines = ["first: ਊ", line, "ਊ" * 100, line]
    file = tmp_path / "a.txt"
    file.write_bytes((ending.join(lines) + ending).encode(encoding))
    found = read(file, encoding=encoding)
    assert [document.text for document in found] == [kept for kept in lines if kept.strip()]


def test_undecodable_bytes_of_other_encodings(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes("one\ntwo".encode("utf-16") + b"\x00\xd8" + "\nthree\n".encode("utf-16-le"))
    with pytest.raises(InputError, match=r"a\.txt, line 2: not valid utf-16: convert the file, set encoding, or set"):
        read(file, encoding="utf-16")
    assert [document.text for document in read(file, "skip", encoding="utf-16")] == ["one", "three"]
    texts = [document.text for document in read(file, encoding="utf-16", errors="replace")]
    assert texts == ["one", "two\ufffd", "three"]
    file.write_bytes(b"caf\xe9\n\x81\n")
    assert [document.text for document in read(file, "skip", encoding="cp1252")] == ["café"]
    assert [document.text for document in read(file, encoding="cp1252", errors="replace")] == ["café", "\ufffd"]


SCRIPTS = {
    "Latin": "Aspirin causes asthma.\nTwo.\n",
    "Greek": "Η ασπιρίνη προκαλεί άσθμα.\nΔύο.\n",
    "Cyrillic": "Аспирин вызывает астму.\nДва.\n",  # these bytes are valid UTF-8, with control characters
    "Devanagari": "एस्पिरिन से अस्थमा होता है।\nदो।\n",
    "Arabic": "الأسبرين يسبب الربو.\nاثنان.\n",
    "Chinese": "阿司匹林引起哮喘。\n二。\n",
    "Thai": "แอสไพรินทำให้เกิดโรคหืด\nสอง\n",
}


@pytest.mark.parametrize("encoding", [name for name in WIDE if name[-2:] in ("le", "be")])
@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("repeats", [1, 500])
def test_wide_text_of_any_script_needs_its_encoding(script: str, encoding: str, repeats: int, tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes((SCRIPTS[script] * repeats).encode(encoding))
    message = (
        rf"a\.txt: {encoding.upper()} text without byte order mark: convert the file, or set encoding to {encoding}$"
    )
    for on_error in ("raise", "skip"):
        with pytest.raises(InputError, match=message):
            read(file, on_error)
    texts = [document.text for document in read(file, encoding=encoding)]
    assert texts == SCRIPTS[script].splitlines() * repeats


def test_encodings_that_python_does_not_know() -> None:
    for encoding in ("", "klingon", "hex", "rot13", "utf-8\0", "idna", "punycode"):
        for make in (lambda: ReadOptions(encoding=encoding), lambda: Corpus(["a.txt"], encoding=encoding)):  # noqa: B023
            with pytest.raises(InputError, match=r"^encoding: unknown encoding .*: give one that Python knows"):
                make()


def test_xml_and_parquet_have_an_encoding_of_their_own(tmp_path: Path) -> None:
    article = f"<PubmedArticle><MedlineCitation><PMID>1</PMID><Article><ArticleTitle>{TEXT}</ArticleTitle></Article>"
    xml = f"{article}</MedlineCitation></PubmedArticle>"
    for declared, encoding in (("utf-16", "utf-16"), ("windows-1253", "cp1253"), ("utf-8", "utf-8"), ("", "utf-8")):
        head = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
        text = xml.replace("é", "e").replace("è", "e")
        (tmp_path / "a.xml").write_bytes((head + text).encode(encoding))
        for given_encoding in ("utf-8", "latin-1", "utf-16"):
            found = read(tmp_path / "a.xml", encoding=given_encoding)
            assert [document.text for document in found] == [TEXT.replace("é", "e").replace("è", "e")]
    pyarrow.parquet.write_table(pa.table({"text": [TEXT]}), tmp_path / "a.parquet")
    assert [document.text for document in read(tmp_path / "a.parquet", encoding="utf-16")] == [TEXT]


def test_nul_bytes(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"Aspirin \0 in asthma.\nSepsis.\n")  # a stray one is a character like others
    assert read(file)[0].text == "Aspirin \0 in asthma."
    file.write_bytes(bytes(5000))
    with pytest.raises(InputError, match=r"a\.txt: laden with NUL bytes, not text: fetch it again"):
        read(file, "skip")
    file.write_bytes(TEXT_FORMATS["a.txt"].encode() * 200 + bytes(5000))  # what a power cut leaves of a download
    with pytest.raises(InputError, match=r"a\.txt, line 401: mostly NUL bytes, not text: fetch the file again"):
        read(file)
    assert len(read(file, "skip")) == 400


def long_file(folder: Path, name: str, text: str) -> Path:
    """Write a document with this text between two short ones, whatever the format."""
    file, texts = folder / name, ["one", text, "two"]
    ending = name.partition(".")[2].removesuffix(".gz")
    articles = "".join(
        f"<PubmedArticle><MedlineCitation><PMID>{number}</PMID><Article><ArticleTitle>{text}</ArticleTitle></Article>"
        "</MedlineCitation></PubmedArticle>"
        for number, text in enumerate(texts)
    )
    bioc = [{"id": number, "passages": [{"offset": 0, "text": text}]} for number, text in enumerate(texts)]
    passages = "".join(
        f"<document><id>{number}</id><passage><offset>0</offset><text>{text}</text></passage></document>"
        for number, text in enumerate(texts)
    )
    full_texts = "".join(
        f'<article><front><article-meta><article-id pub-id-type="pmid">{number}</article-id><title-group>'
        f"<article-title>{text}</article-title></title-group></article-meta></front></article>"
        for number, text in enumerate(texts)
    )
    content = {
        "nxml": f"<pmc-articleset>{full_texts}</pmc-articleset>",
        "bioc.xml": f"<collection>{passages}</collection>",
        "txt": "\r\n".join(texts),
        "jsonl": "\n".join(json.dumps({"text": text}) for text in texts),
        "pubtator": "\n".join(f"{number}|t|{text}\n" for number, text in enumerate(texts)),
        "json": json.dumps({"documents": bioc}),
        "csv": "id,text\n" + "\n".join(f"{number},{text}" for number, text in enumerate(texts)),
        "tsv": "id\ttext\n" + "\n".join(f"{number}\t{text}" for number, text in enumerate(texts)),
        "conll": "\n\n".join(f"{text}\tO" for text in texts),
        "xml": f"<PubmedArticleSet>{articles}</PubmedArticleSet>",
    }
    if ending == "parquet":
        pyarrow.parquet.write_table(pa.table({"text": texts}), file)
    else:
        file.write_bytes(packed(content[ending].encode(), name))
    return file


OF_SEVERAL = [f"a{FORMATS[name].suffixes[0]}" for name in READABLE if name not in ("jats", "brat")]
"""A name in each format whose files may have several documents."""


@pytest.mark.parametrize("name", [*OF_SEVERAL, "a.txt.gz", "a.jsonl.gz"])
def test_a_document_over_the_limit_is_an_error_of_the_document(name: str, tmp_path: Path) -> None:
    file = long_file(tmp_path, name, "é" * 1000)
    assert len(read(file, max_document_megabytes=0.01)) == 3
    message = r"a\.\S+, (line|row|document) \S+: a document of 0.0 MB, more than the limit of 0.001: put each document"
    with pytest.raises(InputError, match=f"{message} in a line of its own, or set max_document_megabytes"):
        read(file, max_document_megabytes=0.001)
    assert [document.text for document in read(file, "skip", max_document_megabytes=0.001)] == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "before", "line", "problem"),
    [
        (
            "a.pubtator",
            "1|t|One asthma\n",
            "1\t4\t10\tasthma\tDisease\n",
            "begins in line 1: more than 4 times the limit",
        ),
        ("a.conll", "", "asthma\tO\n", "line 1: a document of 0.0 MB"),
        ("a.conll", "-DOCSTART- -X- O O\n\n", "asthma\tO\n\n", "begins in line 1: a document of 0.0 MB"),
    ],
)
def test_what_seems_to_lack_empty_lines_does_not_fill_the_memory(
    name: str, before: str, line: str, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(f"{before}{line * 5_000}\n{before or 'fine'}{line}")
    tracemalloc.start()
    with pytest.raises(InputError, match=problem):
        read(file, max_document_megabytes=0.001)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300_000
    (last,) = read(file, "skip", max_document_megabytes=0.001)
    assert last.text.endswith("asthma")


def test_the_limit_itself_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a" * 1000 + b"\r\n" + b"b" * 1001 + b"\n" + b"c" * 100_000 + b"\nend")
    found = read(tmp_path / "a.txt", "skip", max_document_megabytes=0.001)
    assert [(document.id, len(document.text)) for document in found] == [("1", 1000), ("4", 3)]
    (tmp_path / "a.txt").write_bytes(BOM_UTF8 + b"a" * 1000 + b"\r\n" + b"b" * 1000)
    assert len(read(tmp_path / "a.txt", max_document_megabytes=0.001)) == 2


def test_a_corpus_has_the_same_limit(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"Aspirin. " * 1_200_000)
    with pytest.raises(InputError, match=r"a\.txt, line 1: a document of 10\.8 MB, more than the limit of 10: put"):
        load_corpus(tmp_path)
    assert len(load_corpus(tmp_path, max_document_megabytes=11)) == 1
    for limit in (0, -1, 1001, float("nan")):
        with pytest.raises(InputError, match=r"^max_document_megabytes: must be above 0 and at most 1000, not"):
            Corpus(["a.txt"], max_document_megabytes=limit)


def test_a_corpus_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"{TEXT}\n", encoding="utf-16")
    with pytest.raises(InputError, match="UTF-16 text: convert the file, or set encoding to utf-16"):
        load_corpus(tmp_path, errors="replace")
    assert list(load_corpus(tmp_path, encoding="UTF16")["text"]) == [TEXT]
    (tmp_path / "a.txt").write_bytes(b"caf\xe9\n")
    assert list(load_corpus(tmp_path, encoding="latin-1")["text"]) == ["café"]
    assert list(load_corpus(tmp_path, encoding="cp1251")["text"]) == ["cafй"]  # not that of the cache
    assert "encoding" not in Corpus(["a.txt"], encoding="UTF8").settings()
    assert Corpus(["a.txt"], encoding="latin1").settings()["encoding"] == "iso8859-1"
