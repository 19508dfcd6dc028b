"""Test that corpora are read the same from every format, errors name the place, and splits are stable."""

from __future__ import annotations

import gzip
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset

import bioptimus_hf.corpus.cache
import bioptimus_hf.corpus.dataset
import bioptimus_hf.corpus.files
import bioptimus_hf.corpus.hub
from bioptimus_hf.corpus.dataset import contents_of, corpus_identity, load_corpus, load_text, split_validation
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.corpus.sentences import split_sentences
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import Source

TEXTS = ["Aspirin reduced pain (p < 0.05).", "β-catenin, naïve T cells; 中文 🧬.", "", "   ", "A third document."]
KEPT = [text for text in TEXTS if text.strip()]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write_txt(path: Path, texts: list[str]) -> None:
    path.write_bytes("".join(f"{text}\n" for text in texts).encode())


def write_jsonl(path: Path, texts: list[str], column: str = "text") -> None:
    path.write_text("".join(json.dumps({"id": 1, column: text}) + "\n" for text in texts))


def write_parquet(path: Path, texts: list[str | None], column: str = "text") -> None:
    pyarrow.parquet.write_table(pa.table({"id": list(range(len(texts))), column: texts}), path)


def pack(path: Path, write: Callable[[Path, list[str]], None], texts: list[str]) -> None:
    write(path, texts)
    path.write_bytes(gzip.compress(path.read_bytes()))


def test_all_formats_of_plain_text_give_the_same_corpus(tmp_path: Path) -> None:
    write_txt(tmp_path / "a.txt", TEXTS)
    pack(tmp_path / "a.txt.gz", write_txt, TEXTS)
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    pack(tmp_path / "a.jsonl.gz", write_jsonl, TEXTS)
    write_parquet(tmp_path / "a.parquet", [*TEXTS[:2], None, *TEXTS[3:]])
    (tmp_path / "windows.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(TEXTS).encode())
    (tmp_path / "bom.jsonl").write_bytes(
        b"\xef\xbb\xbf" + b"".join(json.dumps({"text": t}).encode() + b"\n" for t in TEXTS)
    )
    (tmp_path / "null.jsonl").write_text("\n".join(json.dumps({"text": text or None}) for text in TEXTS) + "\n\n")
    for file in sorted(tmp_path.iterdir()):
        dataset = load_corpus(file)
        assert dataset.column_names == ["text", "document"], file.name
        assert list(dataset["text"]) == KEPT, file.name
        assert list(dataset["document"]) == [0, 1, 2], file.name


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_text_column(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    (write_jsonl if suffix == "jsonl" else write_parquet)(file, TEXTS, "abstract")  # type: ignore[operator]
    assert list(load_corpus(file, text_column="abstract")["text"]) == KEPT
    with pytest.raises(InputError, match=rf"a\.{suffix}.*'text'"):
        load_corpus(file)


def test_folders_patterns_and_several_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "deep/c.txt", "deep/er/d.txt", "deep/notes.md", "deep/page.html", "deep/.e.txt"):
        write_txt(tmp_path / name, [Path(name).stem])

    def read(*sources: Any) -> list[str]:
        return list(load_corpus(sources[0] if len(sources) == 1 else sources)["text"])

    assert read(tmp_path) == ["a", "b", "c", "d"]
    assert read(str(tmp_path / "*.txt")) == ["a", "b"]
    assert read(str(tmp_path / "**" / "[cd].*")) == ["c", "d"]
    assert read(tmp_path / "deep", str(tmp_path / "b*")) == ["c", "d", "b"]
    monkeypatch.chdir(tmp_path)
    assert read("deep") == ["c", "d"]
    assert read("*.txt") == ["a", "b"]
    write_txt(tmp_path / "strange[1].txt", ["a file, though it looks like a pattern"])
    assert read("strange[1].txt") == ["a file, though it looks like a pattern"]
    documents = load_corpus([tmp_path / "a.txt", tmp_path / "b.txt"])["document"]
    assert list(documents) == [0, 1]


def test_changed_content_is_never_served_from_the_cache(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_txt(file, ["old text"])
    stamp = file.stat()
    assert list(load_corpus(file)["text"]) == ["old text"]
    assert list(load_corpus(file)["text"]) == ["old text"]
    write_txt(file, ["new text"])  # of the same size, at the same time
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert file.stat().st_size == stamp.st_size
    dataset = load_corpus(file)
    assert list(dataset["text"]) == ["new text"]
    assert list(split_sentences(dataset)["text"]) == ["new text"]


def test_another_version_of_the_package_ignores_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache doesn't see changed code; what is derived from a corpus (sentences, contexts) depends on its key."""
    write_txt(tmp_path / "a.txt", ["text"])
    before, again = load_corpus(tmp_path), load_corpus(tmp_path)
    assert before._fingerprint == again._fingerprint
    monkeypatch.setattr(bioptimus_hf.corpus.cache, "__version__", "99.0")
    assert load_corpus(tmp_path)._fingerprint != before._fingerprint


def xml(title: bytes) -> bytes:
    """Return PubMed XML with one article."""
    return (
        b"<PubmedArticleSet><PubmedArticle><MedlineCitation><PMID>1</PMID><Article><ArticleTitle>%s</ArticleTitle>"
        b"</Article></MedlineCitation></PubmedArticle></PubmedArticleSet>" % title
    )


@pytest.mark.parametrize("packed", [False, True])
def test_invalid_utf8_names_file_and_byte(tmp_path: Path, packed: bool) -> None:
    content = "naïve\nline two\n".encode() + b"caf\xe9 au lait\nmore\n"
    file = tmp_path / ("a.txt.gz" if packed else "a.txt")
    file.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError) as error:
        load_corpus(file)
    where = "decompressed file" if packed else "file"
    assert str(error.value) == (
        f"{file}, line 3: not valid UTF-8 at byte {content.index(0xE9)} of the {where}: convert the file, set "
        f"encoding, or set errors to replace"
    )


def test_undecodable_bytes_are_replaced_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, warnings_of_package: Callable[[], list[str]]
) -> None:
    write_txt(tmp_path / "a.txt", ["all right, and \ufffd was there before"])
    (tmp_path / "b.txt").write_bytes(b"caf\xe9 au lait\nna\xefve \xff\xfe\n")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "caf\xe9"}\n'))
    invalid = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    pyarrow.parquet.write_table(pa.table({"text": invalid}), tmp_path / "d.parquet")
    (tmp_path / "e.pubtator").write_bytes(b"1|t|Na\xefve\n1|a|T\xff cells\n")
    (tmp_path / "f.json").write_bytes(
        b'{"documents": [{"id": "1", "passages": [{"offset": 0, "text": "\xef\xbf\xbd \xe9"}]}]}'
    )
    (tmp_path / "g.xml").write_bytes(xml("na\xefve".encode("latin-1")))
    (tmp_path / "h.xml").write_bytes(b'<?xml version="1.0" encoding="ISO-8859-1"?>' + xml("na\xefve".encode("latin-1")))
    (tmp_path / "i.conll").write_bytes(b"caf\xe9\tO\n")
    counts = {"b.txt": 4, "c.jsonl.gz": 1, "d.parquet": 1, "e.pubtator": 2, "f.json": 1, "g.xml": 1, "i.conll": 1}
    for _ in range(2):  # from the cache too
        caplog.clear()
        texts = list(load_corpus(tmp_path, errors="replace")["text"])
        assert texts[1:5] == ["caf\ufffd au lait", "na\ufffdve \ufffd\ufffd", "caf\ufffd", "\ufffd"]
        assert texts[5:] == ["Na\ufffdve\nT\ufffd cells", "\ufffd \ufffd", "na\ufffdve", "na\xefve", "caf\ufffd"]
        assert [message.split(" ")[:2] for message in warnings_of_package()] == [
            [f"{tmp_path / name}:", str(count)] for name, count in counts.items()
        ]


@pytest.mark.parametrize("errors", ["strict", "replace"])
def test_characters_across_chunks_are_not_replaced(
    tmp_path: Path, errors: str, warnings_of_package: Callable[[], list[str]]
) -> None:
    """Parsers of JSON and XML read chunks, which may end within a character."""
    text = "".join(f"{'x' * number}β🧬中\ufffd" for number in range(600)) + "end"
    (tmp_path / "a.json").write_text(
        json.dumps({"id": "1", "passages": [{"offset": 0, "text": text}]}, ensure_ascii=False)
    )
    (tmp_path / "b.xml").write_bytes(xml(text.encode()))
    assert list(load_corpus(tmp_path, errors=errors)["text"]) == [text, text]
    assert not warnings_of_package()


def test_annotated_documents_are_a_corpus(tmp_path: Path) -> None:
    """A folder gives the files of all formats; annotations are ignored, even broken ones."""
    (tmp_path / "a.pubtator").write_text("1|t|A title\n1|a|An abstract\n1\t900\t905\twrong\tGene\n\n2|t|Two\n2|a|\n")
    passages = [{"offset": 0, "text": "One"}, {"offset": 9, "text": "Two", "annotations": [{"text": "no location"}]}]
    (tmp_path / "b.json").write_text(json.dumps({"documents": [{"id": "1", "passages": passages}]}))
    (tmp_path / "c.xml.gz").write_bytes(gzip.compress(xml(b"An article")))
    (tmp_path / "d.TSV").write_text("IL-2\tB-Gene\nbinds\tO\n\nTwo\tO\n")
    write_parquet(tmp_path / "e.parquet", ["row"])
    (tmp_path / "f.jsonl").write_text('{"text": "line", "id": [], "entities": "none"}\n')
    (tmp_path / "g.html").write_text("a page can't be read back")
    (tmp_path / ".records").mkdir()
    (tmp_path / ".records" / "a.json").write_text("not BioC")
    corpus = load_corpus(tmp_path)
    assert corpus["text"][:] == [
        "A title\nAn abstract",
        "Two\n",
        "One\nTwo",
        "An article",
        "IL-2 binds",
        "Two",
        "row",
        "line",
    ]
    assert corpus["document"][:] == list(range(8))
    assert load_corpus([tmp_path / name for name in ("d.TSV", "a.pubtator")])["text"][:3] == [
        "IL-2 binds",
        "Two",
        "A title\nAn abstract",
    ]


def test_files_that_can_be_read_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        write_txt(tmp_path / f"{number}.txt", [f"text {number}", "", f"more {number}"])
    (tmp_path / "1.txt").write_bytes(b"\xff")
    (tmp_path / "3.txt").write_text("\n \n")  # no documents, which does not matter beside others
    (tmp_path / "5.txt.gz").write_bytes(b"no gzip")
    read: list[str] = []
    open_input = bioptimus_hf.corpus.files.open_input
    monkeypatch.setattr(
        bioptimus_hf.corpus.files,
        "open_input",
        lambda path, *rest, **named: read.append(Path(path).name) or open_input(path, *rest, **named),
    )
    with pytest.raises(InputError) as error:
        load_corpus(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / '1.txt'}, line 1: not valid UTF-8 at byte 0 of the file: convert the file, set encoding, or set "
        f"errors to replace; {tmp_path / '5.txt.gz'} is not a complete gzip file (Not a gzipped file (b'no')): fetch "
        f"it again; 4 other files are cached for the next time"
    )
    assert read == ["0.txt", "1.txt", "2.txt", "3.txt", "4.txt", "5.txt.gz"]
    read.clear()
    (tmp_path / "5.txt.gz").unlink()
    write_txt(tmp_path / "1.txt", ["fixed"])
    corpus = load_corpus(tmp_path)
    assert read == ["1.txt"]
    assert list(corpus["text"]) == ["text 0", "more 0", "fixed", "text 2", "more 2", "text 4", "more 4"]
    assert list(corpus["document"]) == list(range(7))
    assert corpus._fingerprint == load_corpus(tmp_path)._fingerprint


def grow(file: Path) -> None:
    with open(file, "ab") as opened:
        opened.write(file.read_bytes())


def shrink(file: Path) -> None:
    os.truncate(file, file.stat().st_size * 2 // 3)


def change(file: Path) -> None:
    with open(file, "r+b") as opened:
        opened.seek(-1000, os.SEEK_END)
        opened.write(b"x")


@pytest.mark.parametrize("limit", [None, 0.1])
@pytest.mark.parametrize("happens", [grow, shrink, change])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.parquet"])
def test_a_file_that_changes_while_it_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    happens: Callable[[Path], None],
    limit: float | None,
) -> None:
    """The text that was read would be found under the hash of the other one."""
    texts = [random.Random(number).randbytes(400).hex() for number in range(1000)]
    file = tmp_path / name
    if name.endswith(".gz"):
        pack(file, write_txt, texts)
    else:
        {"a.txt": write_txt, "a.jsonl": write_jsonl, "a.parquet": write_parquet}[name](file, texts)  # type: ignore[operator]
    content = file.read_bytes()
    read = bioptimus_hf.corpus.files.read_open_file

    def disturbed(opened: Any) -> Any:
        for number, document in enumerate(read(opened)):
            if number == 10:
                happens(file)
            yield document

    with monkeypatch.context() as patch:
        patch.setattr(bioptimus_hf.corpus.files, "read_open_file", disturbed)
        with pytest.raises(InputError) as error:
            load_corpus(file, max_megabytes=limit)
    assert str(error.value) == f"{file} changed while it was being read: run the same command again"
    file.write_bytes(content)
    assert load_corpus(file, max_megabytes=limit)["text"][:] == (texts if limit is None else texts[:125])


def test_a_file_that_is_replaced_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old file is read to its end, as its hash says."""
    texts = [f"{number} " * 100 for number in range(1000)]
    write_txt(tmp_path / "a.txt", texts)
    write_txt(tmp_path / "new", texts[::-1])
    read = bioptimus_hf.corpus.files.read_open_file

    def disturbed(opened: Any) -> Any:
        for number, document in enumerate(read(opened)):
            if number == 10:
                (tmp_path / "new").rename(tmp_path / "a.txt")
            yield document

    with monkeypatch.context() as patch:
        patch.setattr(bioptimus_hf.corpus.files, "read_open_file", disturbed)
        assert load_corpus(tmp_path / "a.txt")["text"][:] == texts
    assert load_corpus(tmp_path / "a.txt")["text"][:] == texts[::-1]


def test_a_file_that_changed_since_it_was_recorded(tmp_path: Path) -> None:
    """The record says what the corpus contained when the stage began."""
    write_txt(tmp_path / "a.txt", ["before"])
    write_txt(tmp_path / "b.txt", ["another file"])
    corpus = Corpus([str(tmp_path)])
    contents = contents_of(corpus.corpus)
    write_txt(tmp_path / "a.txt", ["after"])
    write_txt(tmp_path / "c.txt", ["new"])
    with pytest.raises(InputError, match=r"a\.txt changed while it was being read: run the same command again"):
        load_text(corpus, contents)
    write_txt(tmp_path / "a.txt", ["before"])
    assert load_text(corpus, contents).documents["text"][:] == ["before", "another file"]


def test_what_is_read_and_left_out_is_counted(tmp_path: Path) -> None:
    write_txt(tmp_path / "a.txt", ["Two words.", "", " \t", "β-catenin"])
    write_parquet(tmp_path / "b.parquet", [None, "", "three more words"])
    (tmp_path / "c.jsonl").write_bytes(b'{"text": null}\n{"text": "caf\xe9"}\n')
    (tmp_path / "d.txt").write_text("\n")
    facts = {"files": 4, "files_read": 4, "documents": 4, "words": 7, "bytes": 42, "empty": 6, "replaced": 1}
    for _ in range(2):  # from the cache, too
        assert load_text(Corpus([str(tmp_path)], errors="replace")).facts == facts
    some = load_text(Corpus([str(tmp_path)], errors="replace", max_megabytes=21e-6)).facts
    assert some == {"files": 4, "files_read": 2, "documents": 2, "words": 3, "bytes": 20, "empty": 4, "replaced": 0}


def test_links_to_folders_are_named(tmp_path: Path, warnings_of_package: Callable[[], list[str]]) -> None:
    for name in ("a/one.txt", "b/two.txt"):
        (tmp_path / name).parent.mkdir()
        write_txt(tmp_path / name, [name])
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b")
    assert load_corpus(tmp_path / "a")["text"][:] == ["a/one.txt"]
    assert warnings_of_package() == [
        f"{tmp_path / 'a'}: left out, since links to folders are not followed: {tmp_path / 'a' / 'link'}"
    ]


def test_copies_and_unknown_files_in_a_folder(tmp_path: Path, warnings_of_package: Callable[[], list[str]]) -> None:
    """Nothing is silently read twice, or not at all."""
    for name in ("a.txt", "B.TXT", ".hidden/a.txt", "deep/c.txt.bz2", "deep/d.docx"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_txt(tmp_path / name, ["the same"])
    for name in ("empty.txt", "nothing.jsonl"):
        (tmp_path / name).touch()
    assert load_corpus(tmp_path)["text"][:] == ["the same", "the same"]
    assert warnings_of_package() == [
        f"{tmp_path}: left out, since the format is unknown: {tmp_path / 'deep/c.txt.bz2'}, {tmp_path / 'deep/d.docx'}",
        f"the same documents are read 2 times: {tmp_path / 'B.TXT'}, {tmp_path / 'a.txt'}",
    ]
    assert load_corpus(str(tmp_path / "**" / "*.txt"))["text"][:] == ["the same"]
    pack(tmp_path / "a.txt.gz", write_txt, ["the same"])
    for source in (tmp_path, str(tmp_path / "a*"), [tmp_path / "a.txt", tmp_path / "a.txt.gz"]):
        with pytest.raises(InputError, match=r"a\.txt and a\.txt\.gz are the same documents twice: move one") as error:
            load_corpus(source)
        assert str(tmp_path / "a.txt") in str(error.value)


def test_invalid_utf8_behind_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfab\xff")
    with pytest.raises(InputError, match="at byte 5"):
        load_corpus(tmp_path / "a.txt")


def test_the_end_of_the_name_determines_the_format(tmp_path: Path) -> None:
    write_txt(tmp_path / "notes.jsonl.txt", ["Plain text."])
    assert list(load_corpus(tmp_path)["text"]) == ["Plain text."]


def test_the_faulty_file_among_many_is_named(tmp_path: Path) -> None:
    write_txt(tmp_path / "a.txt", ["fine"])
    (tmp_path / "b.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"b\.txt, line 1: not valid UTF-8 at byte 0"):
        load_corpus(tmp_path)


def test_broken_gzip(tmp_path: Path) -> None:
    rng = random.Random(0)
    whole = gzip.compress("".join(rng.choice("abcdef \n") for _ in range(20_000)).encode())
    broken = {
        "cut": whole[: len(whole) // 2],
        "changed": whole[:2000] + bytes(64) + whole[2064:],
        "checksum": whole[:-8] + bytes(8),
        "plain": b"not packed at all\n",
    }
    for name, content in broken.items():
        file = tmp_path / f"{name}.txt.gz"
        file.write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}\.txt\.gz is not a complete gzip file"):
            load_corpus(file)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', "not JSON"),
        ('"a string"', "no text under 'text'"),
        ('{"title": "x"}', "no text under 'text'"),
        ('{"text": 5}', "no text under 'text'"),
        ('{"text": "\\ud83d"}', "surrogate"),
    ],
)
def test_bad_jsonl_names_the_line(tmp_path: Path, line: str, message: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "fine"}\n\n' + line + "\n")
    with pytest.raises(InputError, match=rf"a\.jsonl, line 3: .*{message}"):
        load_corpus(file)


def test_bad_parquet(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    write_parquet(file, ["x"], "abstract")
    with pytest.raises(InputError, match=r"a\.parquet has no column 'text': it has id, abstract"):
        load_corpus(file)
    with pytest.raises(InputError, match="'id' isn't a string column"):
        load_corpus(file, text_column="id")
    for content in (b"", b"no parquet", file.read_bytes()[:-20], b"PAR1" + bytes(50) + b"PAR1"):
        (tmp_path / "b.parquet").write_bytes(content)
        with pytest.raises(InputError, match=r"b\.parquet is not a complete Parquet file") as error:
            load_corpus(tmp_path / "b.parquet")
        assert "\n" not in str(error.value)
    invalid = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    pyarrow.parquet.write_table(pa.table({"text": invalid}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"c\.parquet, row 1: not valid UTF-8 at byte 0"):
        load_corpus(tmp_path / "c.parquet")


def test_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_hub(*_: Any, **__: Any) -> None:
        pytest.fail("this is not the name of a Hub data set")

    monkeypatch.setattr(bioptimus_hf.corpus.hub, "load_dataset", no_hub)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.md").write_text("x")
    for nothing in ("missing.txt", "./missing", "a/b/c", "*.txt", "empty", str(tmp_path / "empty"), "**x/*.txt"):
        with pytest.raises(InputError, match="no corpus at"):
            load_corpus(nothing)
        with pytest.raises(InputError, match="no corpus at"):
            corpus_identity(nothing)
    with pytest.raises(
        InputError,
        match=r"notes\.md has an unknown format: .* \.txt, .*, \.bio "
        r"\(all but \.parquet, \.brat may be followed by \.gz\)",
    ):
        load_corpus("notes.md")
    with pytest.raises(InputError, match="no corpus at missing: "):  # only a single source can be a Hub data set
        load_corpus(["missing", tmp_path])
    with pytest.raises(InputError, match="no corpus given"):
        load_corpus([])


def test_empty_corpus(tmp_path: Path) -> None:
    for content in ("", "\n \n\t\n"):
        (tmp_path / "a.txt").write_text(content)
        with pytest.raises(InputError, match=r"no text in .*a\.txt: every document is empty"):
            load_corpus(tmp_path)


def test_max_megabytes(tmp_path: Path) -> None:
    texts = ["ä" * 100] * 10  # 200 bytes of UTF-8 each
    write_txt(tmp_path / "a.txt", texts)
    write_txt(tmp_path / "b.txt", texts)
    assert [len(load_corpus(tmp_path, max_megabytes=size / 1e6)) for size in (1, 200, 999, 1000, 2400, 1e6)] == [
        1,  # never nothing
        1,
        4,
        5,
        12,
        20,
    ]
    for size in (0, -1):
        with pytest.raises(InputError, match=r"^max_megabytes: must be above 0"):
            load_corpus(tmp_path, max_megabytes=size)
    with pytest.raises(InputError, match=r"^errors: must be strict or replace"):
        load_corpus(tmp_path, errors="ignore")


def test_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str]] = []

    def load_dataset(name: str, *, revision: str, split: str) -> Dataset:
        asked.append((name, revision, split))
        return Dataset.from_dict(
            {"pmid": list(range(len(TEXTS) + 1)), "abstract": [*TEXTS, None], "document": ["x"] * 6}
        )

    def find_files(name: str, patterns: list[str]) -> Source:
        name, _, revision = name.partition("@")
        return Source("anywhere", f"{name}@commit-of-{revision or 'main'}")

    monkeypatch.setattr(bioptimus_hf.corpus.hub, "load_dataset", load_dataset)
    monkeypatch.setattr(bioptimus_hf.corpus.hub, "find_files", find_files)
    monkeypatch.setattr(bioptimus_hf.corpus.hub.constants, "HF_HUB_OFFLINE", False)
    dataset = load_corpus("some/abstracts", text_column="abstract")
    assert dataset.column_names == ["text", "document"]
    assert list(dataset["text"]) == KEPT
    assert list(dataset["document"]) == [0, 1, 2]
    assert len(load_corpus("abstracts@v1:validation[:10%]", text_column="abstract", max_megabytes=60e-6)) == 1
    assert asked == [
        ("some/abstracts", "commit-of-main", "train"),
        ("abstracts", "commit-of-v1", "validation[:10%]"),
    ]
    with pytest.raises(InputError, match="some/abstracts has no column 'text': it has pmid, abstract, document"):
        load_corpus("some/abstracts")
    with pytest.raises(InputError, match="'pmid' isn't a string column"):
        load_corpus("some/abstracts", text_column="pmid")
    asked.clear()
    monkeypatch.setattr(bioptimus_hf.corpus.hub.constants, "HF_HUB_OFFLINE", True)
    text = load_text(Corpus(["some/abstracts"], text_column="abstract"))  # of this commit, from our cache
    assert (list(text.documents["text"]), asked) == (KEPT, [])
    words, size = len(" ".join(KEPT).split()), len("".join(KEPT).encode())
    assert text.facts == {"documents": 3, "words": words, "bytes": size, "empty": 3, "replaced": 0}
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(InputError, match="commit commit-of-main is not in the cache: load it once without"):
        load_corpus("some/abstracts", text_column="abstract")
    assert corpus_identity("some/abstracts:test") == "name:some/abstracts@commit-of-main:test"


def test_hub_data_set_that_is_not_available() -> None:
    with pytest.raises(InputError, match="no corpus at some/abstracts: not a local file and not an available") as error:
        load_corpus("some/abstracts")
    assert "\n" not in str(error.value)


def test_corpus_identity_depends_on_content_and_order(tmp_path: Path) -> None:
    for name, text in (("a.txt", "one"), ("b.txt", "two"), ("other/first.txt", "one"), ("other/second.txt", "two")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_txt(tmp_path / name, [text])
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    assert corpus_identity([a, b]) == corpus_identity(tmp_path / "other") == corpus_identity(str(tmp_path / "[ab].txt"))
    assert corpus_identity([a, b]) != corpus_identity([b, a])
    assert corpus_identity([a]) == corpus_identity(a) == corpus_identity(tmp_path / "other" / "first.txt")
    before = corpus_identity([a, b])
    write_txt(b, ["twO"])
    assert corpus_identity([a, b]) != before


def sides(texts: list[str], **options: Any) -> tuple[list[str], list[str]]:
    parts = split_validation(Dataset.from_dict({"text": texts}), **options)
    return list(parts["train"]["text"]), list(parts["validation"]["text"])


DOCUMENTS = [f"document {number}" for number in range(2000)]


def test_split_depends_on_the_text_alone() -> None:
    train, validation = sides(DOCUMENTS, share=0.1)
    assert sorted(train + validation) == sorted(DOCUMENTS)
    assert train == [text for text in DOCUMENTS if text in set(train)]  # the order of the corpus is kept
    shuffled = random.Random(0).sample(DOCUMENTS, len(DOCUMENTS))
    assert set(sides(shuffled, share=0.1)[1]) == set(validation)
    assert set(sides(DOCUMENTS[::2], share=0.1)[1]) == set(validation) & set(DOCUMENTS[::2])


def test_copies_are_on_one_side() -> None:
    train, validation = sides(DOCUMENTS * 2, share=0.3)
    assert not set(train) & set(validation)
    assert len(train) == 2 * len(set(train))


def test_split_has_the_expected_share() -> None:
    for share in (0.05, 0.5):
        spread = (len(DOCUMENTS) * share * (1 - share)) ** 0.5
        assert abs(len(sides(DOCUMENTS, share=share)[1]) - len(DOCUMENTS) * share) < 4 * spread
    # A larger share contains the validation documents of a smaller one, so that a share can be lowered later.
    assert set(sides(DOCUMENTS, share=0.1)[1]) < set(sides(DOCUMENTS, share=0.2)[1])


def test_split_is_the_same_in_every_version() -> None:
    """Records contain the share alone, so the split must not change from version to version."""
    assert sides(DOCUMENTS, share=0.002)[1] == ["document 41", "document 465", "document 1123"]


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5])
def test_split_rejects_an_impossible_share(share: float) -> None:
    with pytest.raises(InputError, match="must be between 0 and 1"):
        sides(DOCUMENTS, share=share)


def test_split_rejects_an_empty_side() -> None:
    with pytest.raises(InputError, match="1 documents leave none for validation"):
        sides(["a"], share=0.01)
    with pytest.raises(InputError, match="1 documents leave none for training"):
        sides(["a"], share=0.999)


def test_a_corpus_that_makes_no_sense_is_rejected() -> None:
    assert Corpus(["a.txt"], errors="replace", max_megabytes=0.5).settings()["errors"] == "replace"
    for options in (
        {"corpus": []},
        {"max_megabytes": 0},
        {"max_megabytes": math.nan},
        {"errors": "ignore"},
        {"validation_share": 1},
    ):
        with pytest.raises(InputError) as error:
            Corpus(**{"corpus": ["a.txt"], **options})  # type: ignore[arg-type]
        assert error.value.argument == next(iter(options))


def test_a_described_corpus_is_loaded_and_split(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", DOCUMENTS[:200], "abstract")
    corpus = Corpus([str(tmp_path)], text_column="abstract", validation_share=0.2)
    expected = sides(DOCUMENTS[:200], share=0.2)
    text = load_text(corpus, contents_of(corpus.corpus))
    assert text.documents["text"][:] == DOCUMENTS[:200]
    found = split_validation(text.documents, share=corpus.validation_share)
    assert (found["train"]["text"][:], found["validation"]["text"][:]) == expected


def test_reading_files_loads_nothing_heavy() -> None:
    """Options name the formats, and must be quick to show."""
    code = "import sys, bioptimus_hf.corpus.formats, bioptimus_hf.corpus.options; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "bioptimus_hf.corpus.rows" in loaded
    assert not {"torch", "transformers", "datasets", "numpy", "pyarrow", "yaml", "matplotlib"} & set(loaded)
