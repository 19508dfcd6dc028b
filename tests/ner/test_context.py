"""What heads read at once: sentences or documents, and that training, prediction and annotation read text alike."""

from __future__ import annotations

import json
from bisect import bisect
from dataclasses import replace
from importlib import resources
from itertools import accumulate, chain, groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
from architectures import save_architecture
from datasets import Dataset, DatasetDict
from head_results import save_encoder
from helpers import build_tiny_head, build_tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertTokenizer

from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.annotation.tokenization import TextTokenizer
from bioptimus_hf.artifacts import Run
from bioptimus_hf.corpus.documents import Entity
from bioptimus_hf.corpus.formats import DocumentReader
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import PUNCTUATION_IN_WORDS, load_by_name, load_token_classifier, new_head, save_head
from bioptimus_hf.ner.experiments import make_heads
from bioptimus_hf.ner.finetuning import best_epoch_arguments, finetune, windows_dataset
from bioptimus_hf.ner.head_report import report_heads
from bioptimus_hf.ner.options import Context, HeadOptions, HeadTraining
from bioptimus_hf.ner.prediction import predict_tags
from bioptimus_hf.ner.scores import entity_spans
from bioptimus_hf.ner.tasks import NerTask, documents_of, label_names, load_ner
from bioptimus_hf.ner.text_words import PunctuationInWords, find_punctuation_in_words
from bioptimus_hf.ner.windows import document_windows, sentences_by_document

SAMPLE = Path(str(resources.files("bioptimus_hf") / "sample" / "ner"))


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return build_tiny_tokenizer()


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of documents of a title and four sentences, made of the sample."""
    sentences = [
        block.splitlines()
        for split in ("train", "dev", "test")
        for block in (SAMPLE / f"{split}.tsv").read_text(encoding="utf-8").strip().split("\n\n")
    ]
    path = tmp_path_factory.mktemp("labelled") / "mine.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for number in range(0, len(sentences) - 5, 5):
            text = ""
            entities: list[dict[str, Any]] = []
            for line in chain.from_iterable(sentences[number : number + 5]):
                word, tag = line.split("\t")
                text += " " if text else ""
                if tag.startswith("I"):
                    entities[-1]["end"] = len(text) + len(word)
                elif tag != "O":
                    entities.append({"start": len(text), "end": len(text) + len(word), "label": tag[2:]})
                text += word
            for entity in entities:
                entity["text"] = text[entity["start"] : entity["end"]]
            file.write(json.dumps({"id": str(number), "text": text, "entities": entities}) + "\n")
    return path


@pytest.fixture(scope="module")
def with_titles(labelled: Path) -> Path:
    """The same as PubTator, whose first sentences are titles."""
    lines = []
    for row in map(json.loads, labelled.read_text(encoding="utf-8").splitlines()):
        title, _, abstract = row["text"].partition(" . ")
        lines += [f"{row['id']}|t|{title} .", f"{row['id']}|a|{abstract}"]
        for one in row["entities"]:
            lines.append("\t".join(map(str, (row["id"], one["start"], one["end"], one["text"], one["label"]))))
        lines.append("")
    path = labelled.with_name("mine.pubtator")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def with_marks(documents: DatasetDict, labelled: Path) -> Path:
    """The same as CoNLL with marks of documents, whose sentences are known."""
    names = label_names(documents["train"])
    blocks = []
    for split in documents.values():
        rows = zip(split["document"], split["tokens"], split["ner_tags"], strict=True)
        for _, of_document in groupby(rows, key=lambda row: row[0]):
            blocks.append("-DOCSTART-\tO")
            blocks += [
                "\n".join(f"{word}\t{names[tag]}" for word, tag in zip(words, tags, strict=True))
                for _, words, tags in of_document
            ]
    path = labelled.with_name("mine.tsv")
    path.write_text("\n\n".join(blocks) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def documents(labelled: Path) -> DatasetDict:
    return load_ner(NerTask("mine"), labelled)


READ_ALIKE = [("bert", "labelled"), ("roberta", "labelled"), ("bert", "with_titles"), ("bert", "with_marks")]
sizes_of_documents = st.lists(st.lists(st.integers(1, 14), max_size=8), max_size=4)


@given(sizes_of_documents, st.integers(3, 30))
@settings(max_examples=200, deadline=None)
def test_a_window_labels_one_sentence_between_its_neighbours(sizes: list[list[int]], max_length: int) -> None:
    """Words are single pieces here, so that a sentence of n words needs n pieces."""
    tokenizer = build_tiny_tokenizer()
    words = ["the", "of", "and", "in"]
    documents = [[[words[number % 4] for number in range(size)] for size in document] for document in sizes]
    room = max_length - 2
    for document, windows in zip(sizes, document_windows(documents, tokenizer, max_length=max_length), strict=True):
        labelled = [window.first_word + word for window in windows for word in range(len(window.first_pieces))]
        assert labelled == list(range(sum(document)))
        edges = [0, *accumulate(size for size in document if size)]
        for window in windows:
            assert len(window.input_ids) <= max_length
            own = window.first_word, window.first_word + len(window.first_pieces)
            begin = own[0] - (window.first_pieces[0] - 1)
            end = begin + len(window.input_ids) - 2
            sentence = bisect(edges, own[0]) - 1
            if edges[sentence + 1] - edges[sentence] > room:
                assert edges[sentence] <= begin <= own[0] < own[1] <= end <= edges[sentence + 1]
                continue
            assert own == (edges[sentence], edges[sentence + 1])
            left, right = edges.index(begin), edges.index(end)
            for further in (edges[max(0, left - 1)], edges[min(len(edges) - 1, right + 1)]):
                assert further in (begin, end) or max(end, further) - min(begin, further) > room, "one more would fit"


def test_context_is_on_both_sides(tokenizer: BertTokenizer) -> None:
    (windows,) = document_windows([[["the"] * 4] * 9], tokenizer, max_length=22)  # room for five sentences
    before = [(window.first_pieces[0] - 1) // 4 for window in windows]
    assert before == [0, 1, 2, 2, 2, 2, 2, 3, 4]
    assert {len(window.input_ids) for window in windows} == {22}


def test_neighbours_with_the_same_document_are_read_together() -> None:
    assert sentences_by_document("abcdef", ["x", "x", None, None, "x", "y"]) == [["a", "b"], ["c", "d"], ["e"], ["f"]]
    with pytest.raises(InputError, match="documents: 1 for 2 sentences"):
        sentences_by_document("ab", ["x"])


def test_every_word_of_a_document_is_labelled_once(documents: DatasetDict, tokenizer: BertTokenizer) -> None:
    train = documents["train"]
    rows = windows_dataset(train, tokenizer, context="document")
    assert len(rows) == len(train)
    found = [label for labels in rows["labels"] for label in labels if label != -100]
    assert found == list(chain(*train["ner_tags"]))
    alone = windows_dataset(train, tokenizer)
    assert sum(map(len, rows["input_ids"])) > 2 * sum(map(len, alone["input_ids"]))


@pytest.mark.parametrize("context", ["sentence", "document"])
def test_sentences_that_do_not_fit_are_reported(
    context: Context, tokenizer: BertTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two short sentences and one of twenty pieces, in windows with room for twelve."""
    words = [["the", "of"], ["and"], ["renal"] * 20, []]
    pieces = [len(ids) for ids in tokenizer([" ".join(one) for one in words], add_special_tokens=False)["input_ids"]]
    assert pieces == [2, 1, 20, 0]
    rows = {"tokens": words, "ner_tags": [[0] * len(one) for one in words], "document": ["1"] * 4}
    windows = windows_dataset(Dataset.from_dict(rows), tokenizer, max_length=14, context=context)
    assert "don't fit into a window of 14 word pieces are divided: 2 of 5 windows begin within a" in caplog.text
    caplog.clear()
    short = windows_dataset(Dataset.from_dict(rows).select([0, 1]), tokenizer, max_length=14, context=context)
    assert (len(short), caplog.text) == (2, "")
    assert len(windows) > len(short)


@pytest.mark.parametrize(("context", "size"), [("sentence", 48), ("document", 48), ("document", 200)])
@pytest.mark.parametrize(("name", "file"), READ_ALIKE)
def test_prediction_and_annotation_read_the_same_windows(
    name: str, file: str, context: Context, size: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """In windows of 48 pieces, many sentences are divided, and next to none has room for a neighbour."""
    source = request.getfixturevalue(file)
    documents = load_ner(NerTask("mine"), source)
    assert ("passage" in documents["test"].column_names) == (file == "with_titles")
    save_architecture(name, tmp_path, longest=256)
    model, tokenizer = load_token_classifier(tmp_path), load_by_name(AutoTokenizer, tmp_path)
    setattr(model.config, f"{context}_window", size)
    originals = {document.id: document for document in DocumentReader(source)}
    test = documents["test"]
    tags = predict_tags(model, tokenizer, test["tokens"][:], documents=documents_of(test))
    apart = predict_tags(model, tokenizer, test["tokens"][:])
    changed = sum(one != other for one, other in zip(chain(*tags), chain(*apart), strict=True))
    assert changed > 100 if size == 200 else changed == 0
    pairs = zip(test["document"], test["tokens"], tags, strict=True)
    compared = 0
    for document, of_document in groupby(pairs, key=lambda pair: pair[0]):
        text = originals[document].text
        expected, end = [], 0
        for _, words, tags_of_sentence in of_document:
            last = ("", -1)  # type and end of the latest entity, which doesn't go on in the next sentence
            for word, tag in zip(words, tags_of_sentence, strict=True):
                start = text.index(word, end)
                if tag == f"I-{last[0]}" and last[1] == end:
                    expected[-1][1] = start + len(word)
                elif tag != "O":
                    expected.append([start, start + len(word), tag[2:]])
                end = start + len(word)
                last = (tag[2:], end) if tag != "O" else ("", -1)
        (found,) = Annotator(model, tokenizer).annotate_documents([originals[document]])
        assert [[entity.start, entity.end, entity.label] for entity in found.entities] == expected
        compared += len(expected)
    assert compared > 10


def test_sentences_without_a_document_are_read_by_themselves(documents: DatasetDict) -> None:
    few = documents["train"].select(range(3))
    assert documents_of(few) == [(few[number]["document"], 0) for number in range(3)]
    unknown = few.remove_columns("document").add_column("document", ["a", None, None])
    assert documents_of(unknown) == [("a", 0), (1,), (2,)]
    assert documents_of(few.remove_columns("document")) == [()] * 3


def test_sentences_without_neighbours_are_reported_once(
    tokenizer: BertTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "unmarked.tsv"
    file.write_text("The\tO\nend\tO\n\nThe\tO\nkidney\tO\n")
    head = build_tiny_head(layers=1)
    for key, times in (("sentence_window", 0), ("document_window", 1)):
        setattr(head.config, key, 20)
        assert len(list(Annotator(head, tokenizer).annotate_documents(DocumentReader(file)))) == 2
        assert caplog.text.count("is a single sentence, which a head that was trained with document") == times


def test_heads_with_other_windows_read_apart(tokenizer: BertTokenizer) -> None:
    heads = [build_tiny_head(layers=1, seed=seed) for seed in (0, 1, 2)]
    text = "The patients were severe in renal failure. " * 9
    alone = []
    for head, key in zip(heads, ("document_window", "sentence_window", "no_window"), strict=True):
        setattr(head.config, key, 20)
        alone += [
            (one.start, one.end, one.label, one.score) for one in next(Annotator(head, tokenizer).annotate([text]))
        ]
    (found,) = Annotator(heads, tokenizer).annotate([text])
    assert sorted((one.start, one.end, one.label, one.score) for one in found) == sorted(alone)


def test_a_foreign_document_window_is_ignored(tokenizer: BertTokenizer) -> None:
    model = build_tiny_head(layers=1)
    plain = predict_tags(model, tokenizer, [["the"], ["of"]], documents=["a", "a"])
    text = "The patients were severe. Renal failure was severe."
    as_a_whole = list(Annotator(model, tokenizer).annotate([text]))
    for other in ("wide", True, 0, None):
        model.config.document_window = model.config.sentence_window = other
        assert predict_tags(model, tokenizer, [["the"], ["of"]], documents=["a", "a"]) == plain
        assert list(Annotator(model, tokenizer).annotate([text])) == as_a_whole


def test_context_can_be_set_for_heads_that_do_not_say_how_they_were_trained(
    tokenizer: BertTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    head = build_tiny_head(layers=1)
    text = "The patients were severe in renal failure. Failure of the kidney was severe. "

    def found(context: Context | None, text: str = text) -> list[Entity]:
        (entities,) = Annotator(head, tokenizer, context=context).annotate([text])
        return [replace(entity, score=round(entity.score, 4)) for entity in entities]

    middle = text.index("Failure of")
    apart = [
        *found(None, text[:middle]),
        *(replace(one, start=one.start + middle, end=one.end + middle) for one in found(None, text[middle:])),
    ]
    assert found("document") == found(None)
    assert found("sentence") == apart != found(None)
    head.config.sentence_window = 20
    assert found(None) == apart
    assert caplog.text == ""
    head.config.sentence_window, head.config.document_window = None, 20
    assert found("sentence") == apart
    assert "the model was trained with context document, as its config.json says: with sentence, it may" in caplog.text
    with pytest.raises(InputError, match="context: must be sentence or document, not 'page'"):
        found("page")  # type: ignore[arg-type]


def test_a_head_with_document_context(documents: DatasetDict, tmp_path: Path) -> None:
    """Its configuration says so, and a head that is made from it starts anew."""
    base = save_encoder(tmp_path / "base")
    model, tokenizer = new_head(base, label_names(documents["train"]), seed=0)
    arguments = best_epoch_arguments(
        tmp_path / "checkpoints", num_train_epochs=2, learning_rate=1e-2, use_cpu=True, disable_tqdm=True, seed=0
    )
    history = finetune(model, tokenizer, documents, arguments, max_length=64, context="document")
    assert max(row["f1"] for row in history) > 0
    save_head(model, tokenizer, tmp_path / "head")
    assert json.loads((tmp_path / "head" / "config.json").read_text())["document_window"] == 64
    model.bert.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    for source in ("head", "encoder"):
        again, _ = new_head(tmp_path / source, label_names(documents["train"]), seed=0)
        assert not hasattr(again.config, "document_window")
    finetune(model, tokenizer, documents, arguments, max_length=32)
    assert not hasattr(model.config, "document_window")
    save_head(model, tokenizer, tmp_path / "of_sentences")
    config = json.loads((tmp_path / "of_sentences" / "config.json").read_text())
    assert (config["sentence_window"], config["tagging_scheme"]) == (32, "IOB2")
    again, _ = new_head(tmp_path / "of_sentences", label_names(documents["train"]), seed=0)
    assert not hasattr(again.config, "sentence_window")
    assert not hasattr(again.config, "tagging_scheme")


def test_annotation_finds_the_entities_that_are_scored(documents: DatasetDict, tokenizer: BertTokenizer) -> None:
    """With IOB2, an entity begins with `B-` only; else with an `I-`, too, as in the pipeline of transformers."""
    head = build_tiny_head(layers=1)
    head.config.sentence_window = 64
    sentences = [words for words in documents["train"]["tokens"] if all(word.isalnum() for word in words[:-1])]
    predicted = predict_tags(head, tokenizer, sentences)
    for scheme in ("IOB2", None):
        head.config.tagging_scheme = scheme
        found = Annotator(head, tokenizer).annotate(map(" ".join, sentences))
        orphans = 0
        for words, tags, entities in zip(sentences, predicted, found, strict=True):
            spans = entity_spans(tags if scheme else beginning(tags))
            starts = [0, *accumulate(len(word) + 1 for word in words)]
            expected = [(starts[first], starts[end] - 1, kind) for first, end, kind in spans]
            assert [(one.start, one.end, one.label) for one in entities] == expected
            orphans += tags != beginning(tags)
        assert orphans > 5


@pytest.mark.parametrize("name", ["bert", "camembert", "roberta"])
def test_annotation_has_the_words_of_the_training_set(name: str, tmp_path: Path) -> None:
    """JNLPBA has `IL-2` as one word, which BERT splits into three; only the first has been trained."""
    save_architecture(name, tmp_path / name)
    head, tokenizer = load_token_classifier(tmp_path / name), load_by_name(AutoTokenizer, tmp_path / name)
    head.config.sentence_window, head.config.tagging_scheme = 64, "IOB2"
    sentences = [
        ["NF-kappa", "B", "binds", "to", "the", "IL-2/IL-4", "site", "(", "5'-AAG", ")", "."],
        ["The", "severe", "patients", "had", "renal-failure", ",", "CD4+", "cells", "and", "0.5", "mg", "."],
        ["The", "3.5-fold", "kidney", "failure", "of", "T-cell-mice", "."],
    ]
    glue = find_punctuation_in_words(sentences)
    assert glue == PunctuationInWords(inside="-./", before="'+", after="-")
    raw = (
        "NF-kappa B binds to the IL-2/IL-4 site (5'-AAG). The severe patients had renal-failure, CD4+ cells and 0.5 mg."
    )
    raw += " The 3.5-fold kidney failure of T-cell-mice."
    expected, end = [], 0
    for words, tags in zip(sentences, predict_tags(head, tokenizer, sentences), strict=True):
        spans = []
        for word in words:
            start = raw.index(word, end)
            end = start + len(word)
            spans.append((start, end))
        expected += [(spans[first][0], spans[last - 1][1], kind) for first, last, kind in entity_spans(tags)]

    def found(model: Any) -> list[tuple[int, int, str]]:
        return [(one.start, one.end, one.label) for one in next(Annotator(model, tokenizer).annotate([raw]))]

    assert found(head) != expected, "this proves nothing"
    glue.record(head.config)
    assert found(head) == expected
    save_head(head, tokenizer, tmp_path / "again")
    assert PunctuationInWords.of(load_token_classifier(tmp_path / "again").config) == glue
    for foreign in (None, "-", {"inside": 3}, {"other": "-"}):
        setattr(head.config, PUNCTUATION_IN_WORDS, foreign)
        assert PunctuationInWords.of(head.config) == PunctuationInWords()
    assert found(head) != expected
    PunctuationInWords().record(head.config)
    assert not hasattr(head.config, PUNCTUATION_IN_WORDS)


@given(st.text(max_size=40), st.booleans())
@settings(max_examples=300, deadline=None)
def test_words_of_any_text_can_be_joined(text: str, by_sentence: bool) -> None:
    tokenizer, config = build_tiny_tokenizer(), build_tiny_head(layers=1).config
    PunctuationInWords(inside="-.,\uff9e", before="+'-\uff9e", after="-+(").record(config)
    (one,) = TextTokenizer(tokenizer, config, "sentence" if by_sentence else None).tokenize([text])
    assert (one.starts <= one.ends).all()
    assert (one.ends[:-1] <= one.starts[1:]).all()
    assert sum(len(window.places) for window in one.windows) == len(one.starts)


def test_words_are_joined_within_reason(tokenizer: BertTokenizer) -> None:
    config = build_tiny_head(layers=1).config
    PunctuationInWords(inside="-.", after="-").record(config)

    def words(text: str) -> list[str]:
        (one,) = TextTokenizer(tokenizer, config).tokenize([text])
        return [text[start:end] for start, end in zip(one.starts, one.ends, strict=True)]

    expected = "It is asthma . The IL-2 of 0.5 mg ."
    assert words("It is asthma.The IL-2 of 0.5 mg.") == expected.split()
    assert max(map(len, words("a-" * 1000))) == 100
    assert find_punctuation_in_words([["Asthma", "etc."], ["In", "mice", "etc."]]) == PunctuationInWords()


@pytest.mark.parametrize("key", ["sentence_window", "document_window"])
def test_a_window_without_room_is_refused(key: str, tokenizer: BertTokenizer) -> None:
    head = build_tiny_head(layers=1)
    setattr(head.config, key, 2)
    with pytest.raises(InputError, match="the model's windows of 2 word pieces have no room for a word"):
        Annotator(head, tokenizer)


@pytest.mark.parametrize(("task", "glue"), [("ncbi-disease", False), ("bc5-chem", False), ("jnlpba", True)])
def test_words_of_real_sets(task: str, glue: bool, tokenizer: BertTokenizer, data_dir: Path) -> None:
    """Words that are joined in the text of a set are words of the set, nearly always."""
    sentences = load_ner(task, data_dir / "ner")["validation"]["tokens"][:1000]
    found = find_punctuation_in_words(sentences)
    assert ("-" in found.inside) == glue
    head = build_tiny_head(layers=1)
    found.record(head.config)
    texts = [" ".join(words) for words in sentences]
    right = total = 0
    for text, words, one in zip(texts, sentences, TextTokenizer(tokenizer, head.config).tokenize(texts), strict=True):
        cut = {text[start:end] for start, end in zip(one.starts.tolist(), one.ends.tolist(), strict=True)}
        right += len(cut & set(words))
        total += len(set(words))
    assert right / total > 0.97


def beginning(tags: list[str]) -> list[str]:
    """Return tags with `B-` where an entity begins with `I-`."""
    return [
        f"B{tag[1:]}" if tag[0] == "I" and (before == "O" or before[2:] != tag[2:]) else tag
        for before, tag in pairwise(["O", *tags])
    ]


def test_heads_of_a_run_with_document_context(labelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    run = Run(str(tmp_path))
    named: dict[str, Any] = {
        "ner_data": str(labelled),
        "tasks": ["mine"],
        "models": [str(save_encoder(tmp_path / "base"))],
        "seeds": [1],
    }
    training = HeadTraining(learning_rate=1e-2, num_train_epochs=1, per_device_train_batch_size=4)
    root = make_heads(run, HeadOptions(**named, context="document"), training)
    head = root / "mine" / "base" / "0"
    settings = json.loads((head / "made.json").read_text())["settings"]
    assert (settings["context"], settings["max_length"]) == ("document", 128)
    caplog.clear()
    report_heads([head], ner_data=str(labelled))
    assert "in its scores.json" not in caplog.text  # the report reads the same windows as the test after training
    with pytest.raises(InputError, match=r"0 was made with different context \(.document. then"):
        make_heads(run, HeadOptions(**named), training)


def test_joint_heads_are_trained_on_sentences() -> None:
    assert (HeadOptions().window, HeadOptions(context="document").window) == (512, 128)
    assert HeadOptions(context="document", max_length=256).window == 256
    with pytest.raises(InputError, match="context: joint heads are trained on sentences: leave out context or joint"):
        HeadOptions(joint=True, context="document")
    with pytest.raises(InputError, match="context: must be sentence or document, not 'paragraph'"):
        HeadOptions(context="paragraph")  # type: ignore[arg-type]
