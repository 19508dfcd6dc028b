"""Text of any length to named entities with character offsets, in bulk."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from bioptimus_hf.annotation.onnx_export import ONNX_FILE, OnnxHead
from bioptimus_hf.corpus.documents import Document, Entity
from bioptimus_hf.corpus.sentences import sentence_starts
from bioptimus_hf.errors import InputError
from bioptimus_hf.hardware import prepare_for_cpu
from bioptimus_hf.models import check_token_classifier, load_by_name, load_token_classifier
from bioptimus_hf.ner.windows import window_spans

Array = npt.NDArray[Any]
_OVERLAP = 0.125  # of a window: a sentence or two of context on each side, at an eighth more work
_TEXTS_AT_ONCE = 256  # read together, so that windows of like length are, and held together


class Annotator:
    """Finds named entities in texts of any length, with one head or several.

    Words are those of the tokenizer; each is labelled by its first piece, and never split. A text that fits the model
    is one window. A longer one is read in windows of whole sentences, which overlap; each word counts once, in the
    window where it has most context on both sides, and entities are put together after that: none ends at the edge of a
    window. A sentence that does not fit is cut between words in the same way.

    An entity begins at a word labelled `B-`, or at one labelled `I-` that continues none of its type, and goes on over
    the words labelled `I-` of its type. Its score is the mean of its words' probabilities. These are the entities of
    transformers' `pipeline("ner", aggregation_strategy="first")`, for a text that fits. Entities of several heads may
    overlap each other.

    Args:
        model: a token classifier, or its folder or Hub name (`name@revision`); or several, which read the same text. A
            folder, though nothing on the Hub, may also be that of an ONNX file, from `export_onnx`. One given as an
            object is not copied: it is moved to `device` and `dtype`, and made ready to read.
        tokenizer: of all models; by default each is read beside its model, which is then given by name.
        batch_size: windows read at once, 1 or more; by default what was fastest: 8 on a CPU, 64 on a GPU.
        dtype: of the model's numbers; by default float32. `torch.bfloat16` is faster where the hardware has it.
        device: where the model runs; by default the accelerator, if there is one and no model is an ONNX file.

    Raises:
        InputError: no such model, or one that is not a trained token classifier; no tokenizer for one given as an
            object, or one without offsets; an ONNX file with a `dtype` or a GPU; a batch size below 1.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel | Sequence[str | Path | PreTrainedModel],
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        models = [model] if isinstance(model, str | Path | PreTrainedModel) else list(model)
        if not models:
            raise InputError("an annotator needs a model")
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        if any(map(_is_onnx, models)):
            accelerator = None
        self.device = torch.device(device or accelerator or "cpu")
        self.batch_size = (8 if self.device.type == "cpu" else 64) if batch_size is None else batch_size
        if self.batch_size < 1:
            raise InputError(f"batches of {batch_size} windows: give 1 or more")
        self._readings: list[_Reading] = []
        for one in models:
            its = tokenizer or _tokenizer_of(one)
            head = _load(one, self.device, dtype)
            reading = _Reading(its, _longest(its, head.config))
            same = next((known for known in self._readings if known.is_like(reading)), reading)
            same.models.append(head)
            if same is reading:
                self._readings.append(reading)

    def annotate(self, texts: Iterable[str]) -> Iterator[list[Entity]]:
        """Yield the entities of each text, in the order of the texts and within a text by their place.

        A few hundred texts are held at a time. `text[entity.start : entity.end] == entity.text` always.

        Raises:
            InputError: one is no text (which one), or a single text was given, whose letters would be texts.
        """
        if isinstance(texts, str):
            raise InputError("give a list of texts, not one text")
        rest = map(_checked, count(), texts)
        while batch := list(islice(rest, _TEXTS_AT_ONCE)):
            found: list[list[Entity]] = [[] for _ in batch]
            for reading in self._readings:
                for entities, more in zip(found, self._read(batch, reading), strict=True):
                    entities += more
            for entities in found:
                yield sorted(entities, key=lambda entity: (entity.start, entity.end, entity.label))

    def annotate_documents(self, documents: Iterable[Document]) -> Iterator[Document]:
        """Yield documents with the entities found in them, instead of those they had and the relations between them.

        A passage is read by itself, so that no entity reaches from one into the next.
        """
        rest = iter(documents)
        while batch := list(islice(rest, _TEXTS_AT_ONCE)):
            parts = [
                [(one.start, one.end) for one in document.passages] or [(0, len(document.text))] for document in batch
            ]
            found = self.annotate(
                document.text[start:end] for document, its in zip(batch, parts, strict=True) for start, end in its
            )
            for document, its in zip(batch, parts, strict=True):
                moved = [
                    replace(entity, start=entity.start + start, end=entity.end + start)
                    for start, _ in its
                    for entity in next(found)
                ]
                extra = {name: value for name, value in document.extra.items() if name != "relations"}
                yield replace(document, entities=moved, extra=extra)

    @torch.inference_mode()
    def _read(self, texts: Sequence[str], reading: _Reading) -> list[list[Entity]]:
        read = reading.words_of(texts)
        windows = [(words, window) for words in read for window in words.windows]
        windows.sort(key=lambda pair: -len(pair[1].ids))
        for start in range(0, len(windows), self.batch_size):
            batch = windows[start : start + self.batch_size]
            given = {name: values.to(self.device) for name, values in reading.padded([one.ids for _, one in batch])}
            rows = torch.tensor([row for row, (_, window) in enumerate(batch) for _ in window.places])
            places = torch.from_numpy(np.concatenate([window.places for _, window in batch]))
            ends = np.cumsum([len(window.places) for _, window in batch])[:-1]
            for number, model in enumerate(reading.models):
                scores, labels = model(**given).logits[rows, places].float().softmax(-1).max(-1)
                if not bool(scores.isfinite().all()):
                    raise InputError("the model computes NaN: its weights are damaged or its training diverged")
                parts = (np.split(values.cpu().numpy(), ends) for values in (labels, scores))
                for (words, window), its_labels, its_scores in zip(batch, *parts, strict=True):
                    own = slice(window.first_word, window.first_word + len(window.places))
                    words.labels[number, own], words.scores[number, own] = its_labels, its_scores
        names = [model.config.id2label for model in reading.models]
        return [
            [entity for number, its in enumerate(names) for entity in words.entities(number, its)] for words in read
        ]


@dataclass(frozen=True)
class _Window:
    ids: Array  # with [CLS] and [SEP]
    first_word: int  # of its own words
    places: Array  # in ids, of the first pieces of its own words


class _Words:
    """The words of a text, and what the heads of one tokenizer say of each."""

    def __init__(self, text: str, starts: Array, ends: Array, windows: list[_Window], heads: int) -> None:
        self.text = text
        self.starts = starts
        self.ends = ends
        self.windows = windows
        self.labels = np.zeros((heads, len(starts)), dtype=np.int64)
        self.scores = np.zeros((heads, len(starts)), dtype=np.float32)

    def entities(self, head: int, names: dict[int, str]) -> Iterator[Entity]:
        """Yield the entities that a head found."""
        kinds = {number: _prefix_and_type(name) for number, name in names.items()}
        outside = [number for number, name in names.items() if name == "O"]
        labels = self.labels[head]
        first = last = -2
        for word in np.flatnonzero(~np.isin(labels, outside)).tolist():
            prefix, kind = kinds[labels[word]]
            if word != last + 1 or prefix == "B" or kind != kinds[labels[first]][1]:
                if first >= 0:
                    yield from self._entity(head, first, last, kinds[labels[first]][1])
                first = word
            last = word
        if first >= 0:
            yield from self._entity(head, first, last, kinds[labels[first]][1])

    def _entity(self, head: int, first: int, last: int, kind: str) -> Iterator[Entity]:
        """Yield the entity of some words, unless these are blanks alone, which are words to some tokenizers."""
        start, end = int(self.starts[first]), int(self.ends[last])
        text = self.text[start:end]
        start, end = end - len(text.lstrip()), start + len(text.rstrip())
        if start >= end:
            return
        following = int(self.starts[last + 1]) if last + 1 < len(self.starts) else len(self.text)
        while end < following and unicodedata.combining(self.text[end]):
            end += 1  # an accent of its own, which tokenizers leave off at the end of a word
        score = float(self.scores[head, first : last + 1].mean())
        yield Entity(start, end, self.text[start:end], kind, score)


class _Reading:
    """A tokenizer, the longest window, and the models that read what it makes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, longest: int) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise InputError(
                f"{type(tokenizer).__name__} does not tell where its pieces stand in a text: use a fast one"
            )
        self._described = backend.to_str()
        self._backend = Tokenizer.from_str(self._described)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True  # "[SEP]" in a text is text
        self._longest = longest
        self._begin, self._end = tokenizer.cls_token_id, tokenizer.sep_token_id
        self._padding = tokenizer.pad_token_id
        self.models: list[Any] = []  # PreTrainedModel or OnnxHead

    def is_like(self, other: _Reading) -> bool:
        """Say whether another reading makes the same windows."""
        return (self._described, self._longest) == (other._described, other._longest)

    def words_of(self, texts: Sequence[str]) -> list[_Words]:
        """Tokenize texts and cut them into windows."""
        found = []
        for text, encoding in zip(texts, self._backend.encode_batch(texts, add_special_tokens=False), strict=True):
            word = np.array(encoding.word_ids, dtype=np.int64)
            first = np.flatnonzero(np.diff(word, prepend=-1))
            last = np.append(first[1:], len(word)) - 1 if len(word) else first
            offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
            starts, ends = offsets[first, 0], offsets[last, 1]
            for number, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
                if text[start : start + 1].isspace():  # some tokenizers count the blank before a word to it
                    starts[number] = end - len(text[start:end].lstrip())
            windows = list(self._windows(text, np.array(encoding.ids, dtype=np.int64), first, starts))
            found.append(_Words(text, starts, ends, windows, len(self.models)))
        return found

    def padded(self, windows: Sequence[Array]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield what a model is given."""
        lengths = np.array([len(ids) for ids in windows])
        batch = np.full((len(windows), lengths.max()), self._padding)
        for row, ids in zip(batch, windows, strict=True):
            row[: len(ids)] = ids
        yield "input_ids", torch.from_numpy(batch)
        yield "attention_mask", torch.from_numpy((np.arange(batch.shape[1]) < lengths[:, None]).astype(np.int64))

    def _windows(self, text: str, ids: Array, first: Array, starts: Array) -> Iterator[_Window]:
        """Cut a text between sentences, or between words where a sentence does not fit.

        Args:
            ids: of its pieces.
            first: number of the first piece of each word.
            starts: first character of each word.
        """
        room = self._longest - 2
        if len(ids) <= room:
            if len(ids):
                yield _Window(np.concatenate([[self._begin], ids, [self._end]]), 0, first + 1)
            return
        sizes = np.minimum(np.diff(first, append=len(ids)), room)  # a word that does not fit is read as far as it does
        sentence = np.searchsorted(sentence_starts(text), starts, side="right")
        too_long = np.bincount(sentence, weights=sizes) > room
        units = np.flatnonzero(np.diff(sentence, prepend=-1) | too_long[sentence])  # their first words
        bounds = np.append(units, len(first))
        in_units = np.add.reduceat(sizes, units).tolist()
        for left, right, own_left, own_right in window_spans(in_units, room, overlap=int(room * _OVERLAP)):
            words = range(bounds[left], bounds[right])
            pieces = [ids[first[word] : first[word] + sizes[word]] for word in words]
            places = 1 + np.cumsum([0, *map(len, pieces)])[:-1]
            own = slice(bounds[own_left] - bounds[left], bounds[own_right] - bounds[left])
            window = np.concatenate([[self._begin], *pieces, [self._end]])
            yield _Window(window, int(bounds[own_left]), places[own])


def _checked(number: int, text: Any) -> str:
    try:
        text.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        raise InputError(f"text {number}, counted from 0, is no text: {' '.join(str(error).split())[:100]}") from error
    checked: str = text
    return checked


def _prefix_and_type(label: str) -> tuple[str, str]:
    """Part a tag; one without `B-` or `I-` goes on over words of its own kind."""
    prefix, hyphen, kind = label.partition("-")
    return (prefix, kind) if hyphen and prefix in ("B", "I") else ("I", label)


def _longest(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> int:
    """Return the length of the longest window: what the tokenizer says, where it says something possible."""
    said, positions = int(tokenizer.model_max_length), int(config.max_position_embeddings)
    if said <= positions:
        return said
    # RoBERTa and its kin count positions from their padding token's id on.
    return positions if config.model_type == "bert" else positions - (config.pad_token_id or 0) - 1


def _is_onnx(model: str | Path | PreTrainedModel) -> bool:
    if isinstance(model, PreTrainedModel):
        return False
    return (Path(model) / ONNX_FILE).is_file() and not (Path(model) / "model.safetensors").is_file()


def _load(model: str | Path | PreTrainedModel, device: torch.device, dtype: torch.dtype | None) -> Any:
    if not isinstance(model, PreTrainedModel):
        if _is_onnx(model):
            if dtype is not None or device.type != "cpu":
                raise InputError(f"{model} is an ONNX file: it runs on a CPU, in the numbers it holds")
            return OnnxHead(model)
        model = load_token_classifier(model)
    else:
        check_token_classifier("the model", model)
    model = model.to(device, dtype or model.dtype).eval()
    prepare_for_cpu(model, device)
    return model


def _tokenizer_of(model: str | Path | PreTrainedModel) -> PreTrainedTokenizerBase:
    if isinstance(model, PreTrainedModel):
        raise InputError("a model given as an object needs its tokenizer too")
    tokenizer: PreTrainedTokenizerBase = load_by_name(AutoTokenizer, model)
    return tokenizer
