"""Turn annotated documents of any format into the data of a task, and say what is changed and left out."""

from __future__ import annotations

import gzip
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from head_results import GOOD, save_encoder, write_task
from helpers import build_tiny_head, build_tiny_tokenizer
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bioptimus_hf.annotation.tokenization import TextTokenizer
from bioptimus_hf.artifacts import read_record
from bioptimus_hf.cli.__main__ import main
from bioptimus_hf.corpus.conll import Sentence
from bioptimus_hf.corpus.documents import Document, Entity
from bioptimus_hf.corpus.formats import ANNOTATED, FORMATS, write_documents
from bioptimus_hf.corpus.reading import ReadOptions
from bioptimus_hf.errors import InputError
from bioptimus_hf.ner.options import HeadOptions
from bioptimus_hf.ner.own_labels import TaggedDocument, read_tagged
from bioptimus_hf.ner.planning import chosen_tasks, load_task
from bioptimus_hf.ner.tasks import NerTask, documents_of, load_ner, read_task, tags_of, task_identity
from bioptimus_hf.ner.text_words import text_words

PIECES = [*"aé1中β🧬|\\\"'<&>-.;=% ", "e\u0301", "👩\u200d⚕️", "\u200b", "\xa0", ". The ", "aspirin ", "IL-2 "]
WITHIN = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)


def texts(pieces: Sequence[str] = PIECES, size: int = 30) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(pieces), max_size=size).map("".join)


@st.composite
def labelled_documents(draw: st.DrawFn) -> list[Document]:
    """Documents with mentions of whole words that don't overlap."""
    documents = []
    for number in range(draw(st.integers(1, 3))):
        text = draw(texts())
        words = text_words(text)
        entities, word = [], 0
        while word < len(words):
            first = word + draw(st.integers(0, 3))
            last = first + draw(st.integers(0, 3))
            if last < len(words):
                start, end = words[first][0], words[last][1]
                entities.append(Entity(start, end, text[start:end], draw(st.sampled_from(["Gene", "cell-type"]))))
            word = last + 1
        if words:
            documents.append(Document(f"d{number}", text, tuple(entities)))
    assume(any(document.entities for document in documents))
    return documents


def spans_of(document: TaggedDocument) -> list[tuple[int, int, str]]:
    """Return the places and types of the mentions that the tags of a document mean."""
    spans: list[tuple[int, int, str]] = []
    place = 0
    for words, tags in document.sentences:
        for word, tag in zip(words, tags, strict=True):
            start = document.text.index(word, place)
            place = start + len(word)
            if tag.startswith("B-"):
                spans.append((start, place, tag[2:]))
            elif tag != "O":
                first, end, kind = spans.pop()
                assert (kind, end <= start) == (tag[2:], True)
                spans.append((first, place, kind))
    return spans


def write(folder: Path, documents: Iterable[Document], format: str) -> Path:
    """Write documents in a format, also as an array of JSON, which the package itself doesn't write."""
    path = folder / f"a{FORMATS[format].suffix}"
    if format == "json":
        lines = write(folder, documents, "jsonl").read_text(encoding="utf-8").splitlines()
        path.write_text(f"[{','.join(lines)}]", encoding="utf-8")
    else:
        write_documents(path, documents, format=format)
    return path


def read(path: Path) -> list[TaggedDocument]:
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    return read_tagged({file: file.name if path.is_dir() else "" for file in files}, path, ReadOptions())


@given(written=labelled_documents())
@WITHIN
@pytest.mark.parametrize("format", ANNOTATED)
def test_tags_mean_the_mentions_that_were_labelled(
    format: str, written: list[Document], tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = read(write(tmp_path_factory.mktemp("labels"), written, format))
    if format == "conll":  # which has neither ids nor white space
        bare = re.compile(r"[\s\ufeff]")
        mentions = [[(bare.sub("", d.text[a:b]), kind) for a, b, kind in spans_of(d)] for d in found]
        assert mentions == [[(bare.sub("", e.text), e.label) for e in d.entities] for d in written]
        return
    assert {d.id: spans_of(d) for d in found} == {
        d.id: [(e.start, e.end, e.label) for e in d.entities] for d in written
    }
    for document, original in zip(found, sorted(written, key=lambda document: document.id), strict=True):
        words = [word for sentence, _ in document.sentences for word in sentence]
        assert words == [original.text[start:end] for start, end in text_words(original.text)]


def words_in_annotation(tokenizer: TextTokenizer, text: str) -> list[tuple[int, int]]:
    (found,) = tokenizer.tokenize([text])
    spans = zip(found.starts.tolist(), found.ends.tolist(), strict=True)
    return [(start, end) for start, end in spans if text[start:end].strip()]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer(build_tiny_tokenizer(), build_tiny_head(layers=0).config)


@given(text=texts([*PIECES, *"\ufeff\t\n\r\x01\x0b\x1c\x85\u2028\ufffd"]))
@settings(WITHIN, max_examples=200)
def test_words_are_those_of_annotation(text: str, tokenizer: TextTokenizer) -> None:
    assert text_words(text) == words_in_annotation(tokenizer, text)


def test_words_of_real_text_are_those_of_annotation(data_dir: Path, tokenizer: TextTokenizer) -> None:
    with gzip.open(data_dir / "corpus" / "abstracts.txt.gz", "rt", encoding="utf-8") as file:
        for text in islice(file, 0, 4000, 40):
            assert text_words(text) == words_in_annotation(tokenizer, text)


def entity(text: str, mention: str, label: str) -> Entity:
    start = text.index(mention)
    return Entity(start, start + len(mention), mention, label)


TEXT = "Antiaspirin helps severe pain. TNF is low."
SENTENCES: list[Sentence] = [
    (["Antiaspirin", "helps", "severe", "pain", "."], ["O"] * 5),
    (["TNF", "is", "low", "."], ["O"] * 4),
]


@pytest.mark.parametrize(
    ("mentions", "tags", "says"),
    [
        (
            [("aspirin", "A")],
            [["B-A", *"OOOO"], [*"OOOO"]],
            "mentions that begin or end within a word, extended to whole words: 1 (for example document 7, 'aspirin' "
            "at 4, now 'Antiaspirin')",
        ),
        (
            [(" severe pain", "D")],
            [["O", "O", "B-D", "I-D", "O"], [*"OOOO"]],
            "mentions with blanks at their edges, which are left out: 1 (for example document 7, ' severe pain' at 17)",
        ),
        (
            [(" ", "D"), ("TNF", "G")],
            [[*"OOOOO"], ["B-G", *"OOO"]],
            "mentions without a word, left out: 1 (for example document 7, ' ' at 11)",
        ),
        (
            [("pain", "D"), ("severe pain", "D"), ("helps severe pain", "E")],
            [["O", "B-E", "I-E", "I-E", "O"], [*"OOOO"]],
            "mentions within others (or of the same words), left out: 2 (for example document 7, D 'severe pain' in E "
            "'helps severe pain')",
        ),
        (
            [("pain", "D"), ("pain", "A"), ("pain", "D")],
            [["O", "O", "O", "B-A", "O"], [*"OOOO"]],
            "mentions within others (or of the same words), left out: 2 (for example document 7, D 'pain' in A 'pain')",
        ),
        (
            [("TNF", "G"), ("TNF", "G")],
            [[*"OOOOO"], ["B-G", *"OOO"]],
            "mentions that are given twice, read once: 1 (for example document 7, G 'TNF')",
        ),
        (
            [("helps severe", "E"), ("severe pain.", "D")],
            [["O", "O", "B-D", "I-D", "I-D"], [*"OOOO"]],
            "mentions that overlap longer ones, left out: 1 (for example document 7, E 'helps severe' and D "
            "'severe pain.')",
        ),
        (
            [("pain. TNF", "D")],
            [["O", "O", "O", "B-D", "I-D", "I-D", "O", "O", "O"]],
            "mentions across the end of a sentence, whose sentences are joined: 1 (for example document 7, "
            "'pain. TNF')",
        ),
        (
            [("TNF", "Cell type")],
            [[*"OOOOO"], ["B-Cell_type", *"OOO"]],
            "types with blanks, written with _: 1 (for example document 7, 'Cell type')",
        ),
        ([("severe", "D"), ("pain", "D")], [["O", "O", "B-D", "B-D", "O"], [*"OOOO"]], ""),
    ],
)
def test_what_is_changed_or_left_out_is_said(
    mentions: list[tuple[str, str]], tags: list[list[str]], says: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = Document("7", TEXT, tuple(entity(TEXT, *mention) for mention in mentions))
    (found,) = read(write(tmp_path, [document], "jsonl"))
    assert [of_sentence for _, of_sentence in found.sentences] == tags
    assert [word for words, _ in found.sentences for word in words] == [
        word for words, _ in SENTENCES for word in words
    ]
    assert caplog.messages == ([f"{tmp_path / 'a.jsonl'}: {says}"] if says else [])


def test_a_mention_in_several_pieces_reaches_from_the_first_to_the_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    places = [{"offset": 18, "length": 6}, {"offset": 31, "length": 3}]
    annotation = {"infons": {"type": "D"}, "text": "severe TNF", "locations": places}
    passage = {"offset": 0, "text": TEXT, "annotations": [annotation]}
    (tmp_path / "a.json").write_text(json.dumps({"documents": [{"id": "7", "passages": [passage]}]}))
    (tmp_path / "a.txt").write_text(TEXT)
    (tmp_path / "a.ann").write_text("T1\tD 18 24;31 34\tsevere TNF\n")
    for name, where in (("a.json", "document 1, passage 1"), ("a.txt", "line 1")):
        caplog.clear()
        (found,) = read(tmp_path / name)
        assert spans_of(found) == [(18, 34, "D")]
        several = "annotations in several pieces, read from the first to the last: 1"
        assert f"{several} (for example {where})" in caplog.messages[0]


# As a task


def studies(number: int = 12, kinds: Sequence[str] = ("Chemical",)) -> list[Document]:
    documents = []
    for place in range(number):
        text = f"Study {place} was long. Aspirin helps."
        documents.append(Document(f"s{place}", text, (entity(text, "Aspirin", kinds[place % len(kinds)]),)))
    return documents


def test_documents_are_split_whole_and_stay_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    text = "No mention."
    path = write(tmp_path, [*studies(20, ["Chemical", "Drug"]), Document("last", text)], "jsonl")
    data = load_ner(NerTask("mine"), path)
    documents = {split: data[split]["document"][:] for split in data}
    assert sum(len(of_split) for of_split in documents.values()) == 41
    names = {split: list(dict.fromkeys(of_split)) for split, of_split in documents.items()}
    assert sorted(name for of_split in names.values() for name in of_split) == sorted(
        [*(f"s{place}" for place in range(20)), "last"]
    )
    for split, of_split in names.items():  # each document is whole, and they are in the order of the file
        assert documents[split] == [name for name in of_split for _ in range(2 if name != "last" else 1)]
        order = [int(name[1:]) for name in of_split if name != "last"]
        assert order == sorted(order)
    shown = [message for message in caplog.messages if message.startswith("mine")]
    totals, shares, _, *of_splits = shown
    assert [totals, shares] == [
        f"mine: {path} has 21 documents (1 without a mention), 41 sentences and 20 mentions: Chemical 10, Drug 10",
        "mine: split by document with the shares train 0.7, validation 0.15, test 0.15 and split_seed 0",
    ]
    sizes = [len(of_split) for of_split in names.values()]
    assert [
        f"mine, {split}: {len(documents[split])} sentences of {size} documents"
        for split, size in zip(names, sizes, strict=True)
    ] == [message.partition(", mentions by type")[0] for message in of_splits[:3]]
    assert [abs(size - 21 * share) < 2 for size, share in zip(sizes, (0.7, 0.15, 0.15), strict=True)] == [True] * 3


def identity(task: NerTask, source: Path) -> dict[str, str]:
    return task_identity(task, source, load_ner(task, source))


def test_the_identity_is_that_of_the_sentences(tmp_path: Path) -> None:
    """So it depends on seed, shares and labels, and neither on the format nor on names."""
    task, documents = NerTask("mine"), studies()
    jsonl, bioc = write(tmp_path, documents, "jsonl"), write(tmp_path, documents, "bioc")
    plain = identity(task, jsonl)
    assert plain == identity(task, bioc)
    assert set(plain) == {"train", "validation", "test"}
    assert plain["test"].startswith("sentences:")
    others = [replace(task, split_seed=1), replace(task, shares=(0.5, 0.25, 0.25))]
    found = [identity(other, jsonl) for other in others]
    assert len({tuple(one.values()) for one in [plain, *found]}) == 3
    renamed = [replace(one, entities=(replace(one.entities[0], label="Drug"),)) for one in documents]
    assert not set(plain.values()) & set(identity(task, write(tmp_path, renamed, "parquet")).values())


def test_documents_with_the_same_id_or_text_stay_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    documents = studies(30)
    for seed in range(4):
        twins = [*documents, replace(documents[3], id="other"), replace(documents[4], id=documents[5].id)]
        data = load_ner(NerTask("mine", split_seed=seed), write(tmp_path, twins, "jsonl"))
        split_of = {name: split for split in data for name in data[split]["document"]}
        assert split_of["other"] == split_of["s3"]
        assert split_of["s4"] == split_of["s5"]
    assert (
        "documents with the id or the text of another one, kept in the same split: 3 (for example other)" in caplog.text
    )


def test_where_the_files_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Splits as files or folders, a file with the name of the task, and folders without splits."""
    train, dev, test = studies(12)[:6], studies(12)[6:9], studies(12)[9:]
    split = tmp_path / "split"
    split.mkdir()
    write_documents(split / "train.jsonl", train)
    write_documents(split / "devel.brat", dev)
    write_documents(split / "test.bioc.xml", test)
    folders = tmp_path / "folders"
    for name, documents in (("train", train), ("val", dev), ("test", test)):
        (folders / name).mkdir(parents=True)
        write_documents(folders / name / "a.pubtator", documents[:2])
        write_documents(folders / name / "b.parquet", documents[2:])
    expected = [[one.id for one in part for _ in range(2)] for part in (train, dev, test)]
    for source in (split, folders):
        assert [part["document"][:] for part in load_ner(NerTask("mine"), source).values()] == expected
        assert [part["document"][:] for part in load_ner(NerTask(source.name), tmp_path).values()] == expected
    loose = tmp_path / "loose"
    write_documents(tmp_path / "mine.jsonl", studies(12))
    (loose / "in").mkdir(parents=True)
    write_documents(loose / "in" / "a.brat", studies(6))
    write_documents(loose / "b.jsonl", studies(12)[6:])
    (loose / "README.txt").write_text("Plain text.\n")
    given = load_ner(NerTask("mine"), tmp_path / "mine.jsonl")
    for task in (NerTask("mine"), NerTask("x", "mine.jsonl")):
        assert load_ner(task, tmp_path)["test"][:] == given["test"][:]
    named = NerTask("loose")
    assert {row for part in load_ner(named, tmp_path).values() for row in part["document"]} == {
        *(f"in/a.brat/s{place}" for place in range(6)),
        *(f"s{place}" for place in range(6, 12)),
    }
    assert f"{loose}: left out, since their formats have no annotations: {loose / 'README.txt'}" in caplog.messages
    direct = load_ner(NerTask("other"), loose)  # without the files of sub-folders, which may be other tasks
    assert {row for part in direct.values() for row in part["document"]} == {f"s{place}" for place in range(6, 12)}
    (task,) = chosen_tasks([f"other={loose}"])
    assert sum(len(part) for part in load_task(task, HeadOptions()).splits.values()) == 24
    write_documents(loose / "b.jsonl.gz", studies(12)[6:])
    with pytest.raises(InputError, match=r"b\.jsonl and b\.jsonl\.gz are the same documents twice"):
        load_ner(NerTask("other"), loose)
    (loose / "b.jsonl.gz").rename(loose / "c.jsonl.gz")  # which of the two is the task's?
    with pytest.raises(
        InputError, match=r"no files of task other in .*b\.jsonl.*c\.jsonl\.gz: give the source as other="
    ):
        load_ner(NerTask("other"), loose)
    assert load_ner(NerTask("c"), loose)["train"]


def test_files_are_tasks_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_documents(tmp_path / "mine.bioc.xml", studies(2))
    monkeypatch.chdir(tmp_path)
    for name in ("mine.bioc.xml", str(tmp_path / "mine.bioc.xml")):
        (task,) = chosen_tasks([name])
        assert (task.name, task.source) == ("mine", name)


def test_a_yaml_file_says_how_to_read_and_split(tmp_path: Path) -> None:
    rows = [{"pmid": one.id, "body": one.text, "entities": [vars(one.entities[0])]} for one in studies(8)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="latin-1")
    (tmp_path / "mine.yaml").write_text(
        "{name: mine, source: a.jsonl, shares: [0.5, 0.25, 0.25], split_seed: 3, "
        "read: {text_column: body, id_column: pmid, encoding: latin-1}}"
    )
    task = read_task(tmp_path / "mine.yaml")
    assert (task.shares, task.split_seed, task.source) == ((0.5, 0.25, 0.25), 3, str(tmp_path / "a.jsonl"))
    assert [len(set(part["document"])) for part in load_ner(task, task.source).values()] == [4, 2, 2]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{name: x, shares: [1, 2]}", "shares must be three numbers (train, validation, test)"),
        (
            "{name: x, shares: [0.5, 0.5, 0.5]}",
            "shares: task x: must be the shares of train, validation, test, above 0",
        ),
        ("{name: x, shares: [1, 0, 0]}", "above 0 and 1 in all, not 1, 0, 0"),
        ("{name: x, split_seed: 0.5}", "split_seed must be a whole number, not 0.5"),
        ("{name: x, split_seed: -1}", "split_seed: task x: can't be negative"),
        ("{name: x, read: {place: a}}", "read must be a mapping with some of text_column, id_column"),
        ("{name: x, read: {encoding: klingon}}", "read: encoding"),
    ],
)
def test_invalid_yaml_is_refused(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(InputError) as caught:
        read_task(tmp_path / "mine.yaml")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_types_of_the_task_are_kept_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path, studies(12, ["Drug", "Gene"]), "bioc_xml")
    data = load_ner(NerTask("mine", types=("Drug",)), path)
    assert {tag for part in data.values() for tags in tags_of(part) for tag in tags} == {"O", "B-Drug"}
    says = "mentions of other types than those of the task, left out: 6 (for example document s1, Gene 'Aspirin')"
    assert f"{path}: {says}" in caplog.messages
    merged = load_ner(NerTask("mine", merged_type="Any"), path)
    assert sum(tag == "B-Any" for part in merged.values() for tags in tags_of(part) for tag in tags) == 12


def test_sentences_without_documents_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """CoNLL may not say where documents begin."""
    (tmp_path / "a.tsv").write_text("".join(f"Aspirin\tB-X\nin\tO\n{place}\tO\n\n" for place in range(10)))
    data = load_ner(NerTask("mine"), tmp_path / "a.tsv")
    assert data.column_names["train"] == ["tokens", "ner_tags"]
    assert (
        "sentences whose document isn't marked, each of which counts as a document: 10 (for example 1)" in caplog.text
    )
    text = "".join(f"-DOCSTART- -X- O O\n\nAspirin\tB\nin\tO\n\n{place}\tO\nb\tO\n\n" for place in range(10))
    (tmp_path / "a.tsv").write_text(text.replace("-DOCSTART- -X- O O\n", "-DOCSTART-\tO\n"))
    data = load_ner(NerTask("mine"), tmp_path / "a.tsv")
    assert sorted(name for part in data.values() for name in part["document"]) == sorted(
        list(map(str, range(1, 11))) * 2
    )
    assert {tag for part in data.values() for tags in tags_of(part) for tag in tags} == {"O", "B-mine"}
    for part in data.values():
        assert documents_of(part) == [(name, 0) for name in part["document"]], "its sentences are read together"


def test_conll_with_splits_keeps_its_documents(tmp_path: Path) -> None:
    marked = f"{GOOD}-DOCSTART- O\n\n###MEDLINE:12\n\n{GOOD}{GOOD}-DOCSTART- O\n\n{GOOD}"
    write_task(tmp_path, train=marked)
    data = load_ner(NerTask("mine"), tmp_path)
    assert data["train"]["document"][:] == [None, "12", "12", "2"]
    assert data["test"]["document"][:] == [None]
    assert all(one.startswith("sha256:") for one in identity(NerTask("mine"), tmp_path).values())


# Bad input


def put(path: Path, documents: Iterable[Document]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_documents(path, documents)


def faulty(folder: Path, fault: str) -> Path:
    """Write data with a fault."""
    parts = {"train": studies(4), "dev": studies(4)[:2], "test": studies(4)[2:]}
    if fault == "no dev":
        del parts["dev"]
    elif fault == "type only in test":
        parts["test"] = studies(2, ["Gene"])
    elif fault == "no mention in dev":
        parts["dev"] = [replace(one, entities=()) for one in parts["dev"]]
    elif fault == "no mention":
        parts = {"all": [replace(one, entities=()) for one in studies()]}
    elif fault == "one sentence":
        parts = {"all": [replace(studies()[0], text="Aspirin", entities=(Entity(0, 7, "Aspirin", "Chemical"),))]}
    elif fault == "types in too few documents":
        parts = {"all": studies(5, ["A", "B", "C", "D"])}
    elif fault == "type that can't be a tag":
        parts = {"all": studies(9, ["Gene-"])}
    for name, documents in parts.items():
        put(folder / f"{name}.jsonl", documents)
    return folder if len(parts) > 1 else folder / "all.jsonl"


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("no dev", r"no dev\.tsv or .* in DIR: a task needs train\.tsv"),
        (
            "type only in test",
            r"DIR/test\.jsonl, document s0: the type Gene of 'Aspirin' doesn't occur in the training set, which has "
            r"Chemical: add documents",
        ),
        ("no mention in dev", r"DIR/dev\.jsonl contains no entities: every tag is O"),
        ("no mention", r"DIR/all\.jsonl contains no entities: every tag is O \(JSON and Parquet have them under ent"),
        ("one sentence", r"DIR/all\.jsonl: 1 document, 1 with mentions, can't be split so that"),
        ("types in too few documents", r"DIR/all\.jsonl: 5 documents, 5 with mentions, can't be split so that"),
        ("type that can't be a tag", r"DIR/all\.jsonl, document s0: 'Gene-' can't be the type of a tag: rename it"),
    ],
)
def test_faults_of_the_data_are_named(fault: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says.replace("DIR", str(tmp_path))) as caught:
        load_ner(NerTask("mine"), faulty(tmp_path, fault))
    assert "\n" not in str(caught.value)


def test_other_faults_are_named(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("Plain text.\n")
    with pytest.raises(InputError, match=r"plain\.txt has a format without annotations: give one of jsonl, "):
        load_ner(NerTask("mine"), tmp_path / "plain.txt")
    (tmp_path / "a.jsonl").write_text('{"text": "a", "entities": [{"start": 0}]}\n')
    with pytest.raises(InputError, match=r"a\.jsonl, line 1: 'entities' must be objects with start, end"):
        load_ner(NerTask("mine"), tmp_path / "a.jsonl")
    with pytest.raises(InputError, match="no other file with annotations: give a file or folder in one of the formats"):
        load_ner(NerTask("mine"), tmp_path / "nothing")
    write_task(tmp_path / "split")
    with pytest.raises(InputError, match=r"split_seed: task mine: .*split is split already: leave it out"):
        load_ner(NerTask("mine", split_seed=1), tmp_path / "split")
    (tmp_path / "split" / "dev.tsv").unlink()
    (tmp_path / "split" / "dev").mkdir()
    with pytest.raises(InputError, match="dev has no file with annotations: give one in the formats jsonl"):
        load_ner(NerTask("mine"), tmp_path / "split")


def test_what_is_doubtful_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = " ".join(["Aspirin", *["a"] * 510])
    documents = [*studies(3), Document("long", long, (entity(long, "Aspirin", "Chemical"),))]
    for name in ("train", "dev", "test"):
        put(tmp_path / f"{name}.jsonl", documents if name != "dev" else documents[3:])
    load_ner(NerTask("mine"), tmp_path)
    assert (
        f"{tmp_path / 'dev.jsonl'} has a single sentence: a head learns nothing from it, and its score says nothing"
        in (caplog.messages)
    )
    assert f"{tmp_path / 'test.jsonl'}: documents with the text of one in the training set: 4 (for example s0)" in (
        caplog.messages
    )
    says = (
        "sentences of more than 510 words, which don't fit into a window of 512 word pieces and are read in several: 1"
    )
    assert f"{tmp_path / 'train.jsonl'}: {says} (for example sentence 7, 511 words)" in caplog.messages


def test_the_command_trains_on_labelled_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path, studies(20), "bioc")
    encoder = save_encoder(tmp_path / "encoder")
    command = ["finetune-ner", "--tasks", f"mine={source}", "--models", f"x={encoder}", "--seeds", "1"]
    command += ["--num_train_epochs", "1", "--output_dir"]
    assert main([*command, str(tmp_path / "out")]) == 0
    head = tmp_path / "out" / "ner" / "mine" / "x" / "0"
    assert read_record(head)["inputs"]["test"] == identity(NerTask("mine"), source)["test"]
    bad = faulty(tmp_path / "bad", "no mention")
    command[2] = f"mine={bad}"
    assert main([*command, str(tmp_path / "none")]) != 0
    assert f"{bad} contains no entities" in capsys.readouterr().err
    assert not (tmp_path / "none" / "ner").exists()
