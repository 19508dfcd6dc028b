from __future__ import annotations

import ctypes
import logging
import os
import shutil
import signal
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
import torch
from conftest import Command
from helpers import ROOT, TAGS, assert_same_entities, build_head_of_words, build_tiny_head, build_tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertForTokenClassification,
    BertTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForTokenClassification,
    pipeline,
)

from bioptimus_hf.annotation import annotator as annotator_module
from bioptimus_hf.annotation.annotator import Annotator
from bioptimus_hf.artifacts import write_record
from bioptimus_hf.corpus.conll import read_conll
from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.corpus.documents import Document, Entity, Passage
from bioptimus_hf.corpus.formats import DocumentReader, write_documents
from bioptimus_hf.corpus.reading import ReadOptions
from bioptimus_hf.corpus.sentences import sentence_starts
from bioptimus_hf.errors import InputError
from bioptimus_hf.ner import text_words

SAMPLE = ROOT / "bioptimus_hf" / "sample"
LONGEST = 24
TOKENIZER = build_tiny_tokenizer()
ONE_WINDOW = Annotator(build_tiny_head(layers=0), TOKENIZER)
MANY_WINDOWS = Annotator(build_tiny_head(layers=0, positions=LONGEST), TOKENIZER, batch_size=3)


def head_with_one_label(label: str, tokenizer: BertTokenizer = TOKENIZER) -> BertForTokenClassification:
    """A head that gives every word the same label, although it also knows `O`."""
    head = build_tiny_head(layers=0, tags=["O", label])
    head.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        head.classifier.bias[1] = 1000
    return head


def offsets(entities: list[Entity]) -> list[tuple[int, int, str]]:
    return [(entity.start, entity.end, entity.label) for entity in entities]


def test_entities_equal_those_of_the_transformers_pipeline(tmp_path: Path) -> None:
    head = build_tiny_head(layers=2)
    texts = load_corpus(SAMPLE / "corpus.txt")["text"][:]
    texts = [text[:150] for text in texts] + [text.upper()[40:90] for text in texts]
    expected = pipeline("ner", model=head, tokenizer=TOKENIZER, aggregation_strategy="first", device="cpu")(texts)
    found = list(Annotator(head, TOKENIZER).annotate(texts))
    assert sum(map(len, found)) > 500
    for text, groups, entities in zip(texts, expected, found, strict=True):
        assert offsets(entities) == [(group["start"], group["end"], group["entity_group"]) for group in groups], text
        scores = [float(group["score"]) for group in groups]
        assert [entity.score for entity in entities] == pytest.approx(scores, abs=1e-5)


# Text that tokenizers drop, join, split or measure differently.
pieces = st.one_of(
    st.sampled_from(
        ["aspirin", "the severe asthma", "bronchoconstriction", "IL-2.", " ", "\r\n", "\t", "\u200b", "e\u0301"]
    ),
    st.sampled_from(
        ["漢字", "🧬", "👩‍🔬", "İ", "[SEP]", "[MASK]", "qwx" * 9, "-" * 40, "(p < 0.05). ", "\ufeff", "\x00"]
    ),
    st.text(max_size=8),
)
any_text = st.lists(pieces, max_size=60).map("".join)


@given(any_text)
@settings(max_examples=150, deadline=None)
def test_offsets_are_exact_and_do_not_depend_on_windows(text: str) -> None:
    (whole,) = ONE_WINDOW.annotate([text])
    (cut,) = MANY_WINDOWS.annotate([text])
    assert_same_entities(cut, whole)  # labels depend on the piece alone, so that only windows could make a difference
    for entity in whole:
        assert text[entity.start : entity.end] == entity.text
        assert entity.text
        assert 0 < entity.score <= 1
    for entity, following in pairwise(whole):
        assert entity.end <= following.start


def test_windows_are_whole_sentences_that_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bioptimus_hf.ner.windows.OVERLAP", 0.5)  # windows are short here
    text = " ".join(f"The patients were severe in {'renal ' * number}failure." for number in (1, 5, 2, 4, 3, 1, 6))
    (group,) = MANY_WINDOWS._groups
    (words,) = group.tokenizer.tokenize([text])
    starts = set(sentence_starts(text))
    assert len(words.windows) > 2
    first = 0
    for window in words.windows:
        assert len(window.ids) <= LONGEST
        assert int(words.starts[window.first_word]) in starts
        assert window.first_word == first
        first += len(window.places)
    assert first == len(words.starts)
    assert sum(len(window.ids) - 2 for window in words.windows) > len(TOKENIZER(text)["input_ids"]) - 2


def test_a_text_of_a_megabyte_is_annotated_to_its_end() -> None:
    text = "Aspirin induced asthma in the mice. " * 28_000
    (found,) = Annotator(build_tiny_head(layers=0), TOKENIZER, batch_size=64).annotate([text])
    per_sentence = offsets(next(ONE_WINDOW.annotate(["Aspirin induced asthma in the mice."])))
    assert len(text) > 1_000_000
    assert len(per_sentence) > 0
    assert len(found) in (28_000 * len(per_sentence), 28_000 * (len(per_sentence) - 1) + 1)
    assert text.endswith(found[-1].text + text[found[-1].end :])


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\u200b"])
def test_texts_without_words_have_no_entities(text: str) -> None:
    assert list(ONE_WINDOW.annotate([text, text])) == [[], []]


def test_an_inside_label_that_continues_no_entity_begins_one() -> None:
    words = {"aspirin": "I-Chemical", "asthma": "I-Disease", "mice": "B-Disease", "renal": "I-Disease"}
    text = "Aspirin asthma renal; mice mice renal the renal"
    (found,) = Annotator(build_head_of_words(words, TAGS), TOKENIZER).annotate([text])
    assert [(entity.text, entity.label) for entity in found] == [
        ("Aspirin", "Chemical"),
        ("asthma renal", "Disease"),
        ("mice", "Disease"),
        ("mice renal", "Disease"),
        ("renal", "Disease"),
    ]


def test_a_combining_accent_stays_with_its_letter() -> None:
    head = head_with_one_label("Thing")
    (found,) = Annotator(head, TOKENIZER).annotate(["cafe\u0301 the"])
    assert [entity.text for entity in found] == ["cafe\u0301 the"]
    (found,) = Annotator(head, TOKENIZER).annotate(["the cafe\u0301"])
    assert [entity.text for entity in found] == ["the cafe\u0301"]


def test_a_combining_accent_that_begins_a_word_is_in_one_entity() -> None:
    cased = BertTokenizer(vocab=TOKENIZER.get_vocab(), do_lower_case=False, model_max_length=512)
    (found,) = Annotator(head_with_one_label("B-Thing"), cased).annotate(["the-\u0301of"])
    assert [entity.text for entity in found] == ["the", "-\u0301", "of"]


SCRIPTS = {
    "Hindi": "मधुमेह के रोगी को हृदय की विफलता हुई।",
    "Bengali": "রোগীর ডায়াবেটিস ও হৃদযন্ত্রের ক্ষতি রোগী",
    "Tamil": "நோயாளிக்கு நீரிழிவு நோய் இருந்தது.",
    "Thai": "ผู้ป่วยมีภาวะหัวใจล้มเหลว ไข้ น้ำ",
    "Khmer": "អ្នកជំងឺមានជំងឺ ទឹកនោមផ្អែម ក្តៅ ឈឺ",
    "Arabic with diacritics": "مَرَضُ السُّكَّرِيِّ فِي المَرْضَى",
    "Hebrew with points": "סֻכֶּרֶת וְאַסְתְּמָה חַדּ",
    "Vietnamese, decomposed": unicodedata.normalize("NFD", "Bệnh nhân bị đái tháo đường, nhẹ"),
    "Latin, decomposed": "cafe\u0301 the-\u0301of n\u0303a\u0308",
    "emoji": "👩🏽‍🔬 ❤️‍🩹 🇩🇪🇫🇷 1️⃣ 👨‍👩‍👧 🏴\U000e0067\U000e0062\U000e007f",
    "ideographs with selectors": "葛\U000e0100根 漢字",
    "Hangul in jamo": "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "Korean": "당뇨병 환자",
}
CASED = BertTokenizer(
    vocab={
        piece: number
        for number, piece in enumerate(dict.fromkeys([*TOKENIZER.get_vocab(), *"".join(SCRIPTS.values())]))
    },
    do_lower_case=False,
    model_max_length=512,
)
CHARACTERS = sorted({*"".join(SCRIPTS.values()), *"ab-. \n\u0600\u200c\u200d\ufe0f\u0300\u0e33", "\U0001f3fd"})


EVERY_WORD = [Annotator(head_with_one_label("B-Thing", tokenizer), tokenizer) for tokenizer in (TOKENIZER, CASED)]


def inside_graphemes(text: str) -> set[int]:
    """The offsets at which a text must not be divided, by a library that implements Unicode's rules."""
    return {place for found in regex.finditer(r"\X", text) for place in range(found.start() + 1, found.end())}


@pytest.mark.parametrize("tokenizer", [TOKENIZER, CASED], ids=["uncased", "cased"])
@pytest.mark.parametrize("label", ["B-Thing", "Thing"])  # each word is an entity, or all together are one
@pytest.mark.parametrize("script", SCRIPTS)
def test_an_entity_is_made_of_whole_graphemes(script: str, label: str, tokenizer: BertTokenizer) -> None:
    text = f"aspirin {SCRIPTS[script]}"
    (found,) = Annotator(head_with_one_label(label, tokenizer), tokenizer).annotate([text])
    assert not {place for entity in found for place in (entity.start, entity.end)} & inside_graphemes(text)
    assert all(entity.end <= following.start for entity, following in pairwise(found))
    covered = "".join(entity.text for entity in found)
    assert covered.replace(" ", "") == text.replace(" ", "")  # no mark is lost


@given(st.text(st.sampled_from("\U0001f1e9\U0001f1ea\U0001f1e9a\u0301\u200d\ufe0f\U0001f3fd"), max_size=30))
@settings(max_examples=300, deadline=None)
def test_flags_are_graphemes(text: str) -> None:
    assert text_words._GRAPHEME.findall(text) == regex.findall(r"\X", text)


def test_a_long_row_of_flags_is_read() -> None:
    """If the time grew with its square, this would take minutes."""
    (found,) = EVERY_WORD[0].annotate(["\U0001f1e9\U0001f1ea" * 100_000])
    assert [(entity.start, entity.end) for entity in found] == [(0, 200_000)]


@given(st.text(st.sampled_from(CHARACTERS), max_size=30), st.sampled_from([0, 1]))
@settings(max_examples=300, deadline=None)
def test_no_entity_begins_or_ends_within_a_grapheme(text: str, number: int) -> None:
    (found,) = EVERY_WORD[number].annotate([text])
    assert not {place for entity in found for place in (entity.start, entity.end)} & inside_graphemes(text)
    assert all(entity.end <= following.start for entity, following in pairwise(found))
    for entity in found:
        assert text[entity.start : entity.end] == entity.text


def test_special_tokens_written_in_a_text_are_plain_text() -> None:
    (group,) = ONE_WINDOW._groups
    (words,) = group.tokenizer.tokenize(["the [SEP] of [MASK] [CLS]"])
    (window,) = words.windows
    assert not set(window.ids[1:-1].tolist()) & {
        TOKENIZER.sep_token_id,
        TOKENIZER.mask_token_id,
        TOKENIZER.cls_token_id,
    }
    assert len(words.starts) == 2 + 3 * 3  # brackets are separate words


def test_several_heads_share_one_tokenization(tmp_path: Path) -> None:
    texts = load_corpus(SAMPLE / "corpus.txt")["text"][:20]
    genes = build_tiny_head(layers=1, seed=1, tags=["O", "B-GENE", "I-GENE"])
    heads = [build_tiny_head(layers=1), genes]
    for number, head in enumerate(heads):
        head.save_pretrained(tmp_path / str(number))
        TOKENIZER.save_pretrained(tmp_path / str(number))
    together = Annotator([tmp_path / "0", str(tmp_path / "1")])
    assert len(together._groups) == 1
    alone = [list(Annotator(head, TOKENIZER).annotate(texts)) for head in heads]
    for found, first, second in zip(together.annotate(texts), *alone, strict=True):
        assert_same_entities(found, sorted(first + second, key=lambda entity: (entity.start, entity.end, entity.label)))
    separate = Annotator([heads[0], build_tiny_head(layers=0, positions=LONGEST)], TOKENIZER)
    assert len(separate._groups) == 2


def test_texts_are_streamed_and_batch_size_changes_no_entity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotator_module, "_TEXTS_AT_ONCE", 4)
    texts = load_corpus(SAMPLE / "corpus.txt")["text"][:30]
    taken = 0

    def source() -> Iterator[str]:
        nonlocal taken
        for text in texts:
            taken += 1
            yield text

    head = build_tiny_head(layers=2)
    found = Annotator(head, TOKENIZER, batch_size=1).annotate(source())
    first = next(found)
    assert taken == 4
    expected = list(map(offsets, [first, *found]))
    for size in (7, None):
        assert list(map(offsets, Annotator(head, TOKENIZER, batch_size=size).annotate(texts))) == expected


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_batches_have_each_window_once_and_few_pieces(batch_size: int | None) -> None:
    annotator = Annotator(build_tiny_head(layers=0), TOKENIZER, batch_size=batch_size)
    texts = [" ".join(["asthma"] * number) for number in (1, 400, 30, 2, 2, 90, 500, 7)] * 9
    windows = [(text, window) for text in annotator._groups[0].tokenizer.tokenize(texts) for window in text.windows]
    windows.sort(key=lambda pair: -len(pair[1].ids))
    batches = list(annotator._batches(windows))
    assert [pair for batch in batches for pair in batch] == windows
    for batch in batches[:-1]:
        if batch_size is None:
            pieces = len(batch) * len(batch[0][1].ids)
            assert 512 <= pieces <= 1024
        else:
            assert len(batch) == batch_size


def test_bfloat16_finds_nearly_the_same_entities() -> None:
    texts = load_corpus(SAMPLE / "corpus.txt")["text"][:40]
    exact = list(Annotator(build_tiny_head(layers=1), TOKENIZER).annotate(texts))
    rough = list(Annotator(build_tiny_head(layers=1), TOKENIZER, dtype=torch.bfloat16).annotate(texts))
    same = sum(len({*offsets(left)} & {*offsets(right)}) for left, right in zip(exact, rough, strict=True))
    assert same > 0.8 * sum(map(len, exact))


def test_passages_are_annotated_separately() -> None:
    text = "Aspirin in asthma\nThe mice were renal"
    passages = (Passage(0, 17, 0, {"type": "title"}), Passage(18, len(text), 18, {"type": "abstract"}))
    plain = Document("1", text, extra={"relations": [["CID"]], "fields": {}})
    divided = Document("2", text, entities=[Entity(0, 7, "Aspirin", "old")], passages=passages, extra={"year": 1})
    everything = Annotator(head_with_one_label("Thing"), TOKENIZER)
    first, second = everything.annotate_documents([plain, divided])
    assert first.extra == {"fields": {}}  # the entities that they relate are gone
    assert offsets(list(first.entities)) == [(0, len(text), "Thing")]
    assert offsets(list(second.entities)) == [(0, 17, "Thing"), (18, len(text), "Thing")]
    assert second.extra == {"year": 1}


def test_spaces_before_a_word_are_not_part_of_an_entity() -> None:
    """SentencePiece includes the space before a word, and a space may even be a word."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁", "▁take", "▁aspirin"]
    backend = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    text = "take  aspirin "
    (separate,) = Annotator(head_with_one_label("B-Drug"), tokenizer).annotate([text])
    (together,) = Annotator(head_with_one_label("Drug"), tokenizer).annotate([text])
    assert offsets(separate) == [(0, 4, "Drug"), (6, 13, "Drug")]
    assert offsets(together) == [(0, 13, "Drug")]
    assert [entity.text for entity in (*separate, *together)] == ["take", "aspirin", "take  aspirin"]


def test_models_that_number_positions_from_the_padding_id() -> None:
    config = RobertaConfig(
        vocab_size=len(TOKENIZER), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    config.max_position_embeddings = 34
    tokenizer = build_tiny_tokenizer()
    tokenizer.model_max_length = int(1e30)  # as if no maximum were recorded
    labels = {"LABEL_0": "O", "LABEL_1": "B-Disease"}
    (found,) = Annotator(RobertaForTokenClassification(config), tokenizer, labels=labels).annotate(["asthma " * 200])
    assert found


def test_invalid_arguments_are_rejected() -> None:
    for number in (0, -1):
        with pytest.raises(InputError, match=f"batch_size is {number}: it must be at least 1"):
            Annotator(build_tiny_head(layers=0), TOKENIZER, batch_size=number)
    with pytest.raises(InputError, match="needs a tokenizer"):
        Annotator(build_tiny_head(layers=0))
    with pytest.raises(InputError, match="no model given"):
        Annotator([], TOKENIZER)


@pytest.mark.parametrize("wrong", ["\ud83d", None, b"bytes", 3])
def test_an_item_that_is_not_a_string_is_named(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"texts\[1\](: must be a string| is not a valid string)"):
        list(ONE_WINDOW.annotate(["Aspirin", wrong]))


def test_a_single_string_is_rejected() -> None:
    with pytest.raises(InputError, match="texts: is a single string: give a list"):
        list(ONE_WINDOW.annotate("Aspirin"))


def test_an_annotator_leaves_the_process_alone(tiny_head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that creates one keeps its logging, environment, signal handlers and malloc settings."""

    def state() -> tuple[object, ...]:
        root = logging.getLogger()
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        return dict(os.environ), root.level, list(root.handlers), list(root.filters), handlers, torch.get_num_threads()

    def load(*_: object) -> None:
        raise AssertionError("a C library is loaded, as for mallopt")

    monkeypatch.setattr(ctypes, "CDLL", load)
    before = state()
    list(Annotator(tiny_head).annotate(["aspirin in asthma"]))
    assert state() == before


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "made.json"])
def test_a_damaged_head_is_refused(tiny_head: Path, tmp_path: Path, name: str, command: Command) -> None:
    """One flipped bit, in a weight for instance, would silently change what is found."""
    head = tmp_path / "0"
    shutil.copytree(tiny_head, head)
    write_record(head / "made.json", {}, {}, facts={}, seconds=0)
    Annotator(head)
    content = bytearray((head / name).read_bytes())
    content[len(content) // 2] ^= 1
    (head / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} (has changed since it was written|is not JSON)"):
        Annotator(head)
    (tmp_path / "text.txt").write_text("Aspirin in asthma.")
    annotate = ("annotate", "--models", head, "--input", tmp_path / "text.txt", "--output_dir", tmp_path / "found")
    error = command(*annotate, status=2).error
    assert error.startswith(f"error: {head / name} ")
    assert error.endswith("make it again (`bioptimus finetune-ner --force`)")
    assert not list((tmp_path / "found").glob("*.jsonl"))


def test_documents_of_conll_keep_tokens_and_sentences(tiny_head: Path, tmp_path: Path) -> None:
    """Each sentence is annotated by itself, as if it stood in a file without documents."""
    sentences = [
        "Aspirin\tX\ncauses\tO\nasthma\tB-Disease\n\n",
        "In\tO\nmice\tO\n\n",
        "severe\tB-Disease\nasthma\tO\n\n",
    ]
    with_documents = "###MEDLINE:7\n\n{}{}###MEDLINE:8\n\n{}".format(*sentences)
    found = {}
    for name, content in (("documents", with_documents), ("sentences", "".join(sentences))):
        (tmp_path / f"{name}.conll").write_text(content)
        reader = DocumentReader(tmp_path / f"{name}.conll", options=ReadOptions(annotations="optional"))
        write_documents(tmp_path / "out.conll", Annotator(tiny_head).annotate_documents(reader))
        found[name] = read_conll(tmp_path / "out.conll")
        texts = [" ".join(sentence.split()[::2]) for sentence in sentences]
        assert [" ".join(words) for words, _ in found[name]] == texts
        assert [d.text for d in DocumentReader(tmp_path / "out.conll")] == (
            ["\n".join(texts[:2]), texts[2]] if name == "documents" else texts
        )
    assert found["documents"] == found["sentences"]
