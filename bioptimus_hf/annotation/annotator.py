"""Find named entities with character offsets in texts of any length."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from bioptimus_hf.annotation.engine_choice import EngineChoice, candidates, choose_engine
from bioptimus_hf.annotation.engines import Engine, is_exported
from bioptimus_hf.annotation.labels import BEST, check_renames, check_score, interpret_labels
from bioptimus_hf.annotation.loading import load_engine
from bioptimus_hf.annotation.options import EngineOption, MinimumScore, Precision
from bioptimus_hf.annotation.tokenization import TextTokenizer, TextWindow, TokenizedText
from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import verify
from bioptimus_hf.corpus.documents import Document, Entity
from bioptimus_hf.corpus.tags import Tag
from bioptimus_hf.errors import InputError, format_error
from bioptimus_hf.models import IOB2, TAGGING_SCHEME, check_tokenizer, find_model, load_by_name, vocabulary_hash
from bioptimus_hf.ner.calibration import MinScore, recommended_min_score
from bioptimus_hf.ner.options import Context, check_context

logger = logging.getLogger(__name__)

_TEXTS_AT_ONCE = 256  # held in memory together, so that windows of similar length share a batch
_PIECES_AT_ONCE = 1024  # in a batch on a CPU, with padding
_PIECES_ON_GPU = 32768


@check_call()
class Annotator:
    """Finds named entities in texts of any length, with one or several heads.

    Words are the tokenizer's words. Each is labelled by its first piece and never split. A head reads text as it was
    trained, if its configuration says so (that of `finetune` does): one sentence after the other, alone or with its
    neighbours. Any other head reads a text that fits the model as a whole, and a longer one in overlapping windows of
    whole sentences. A sentence that doesn't fit is divided between words. Each word is labelled in the window where it
    has most context on both sides, and entities are assembled afterwards, so that none ends at the edge of a window.

    An entity begins at a word labelled `B-` and extends over the following words labelled `I-` of its type. Its score
    is the mean probability of its words. A head whose configuration doesn't say that its tags are IOB2 (that of
    `finetune` does) may have been trained with another scheme: there, an entity also begins at an `I-` that doesn't
    continue one. So for a text that such a head reads as a whole, these are the entities of transformers'
    `pipeline("ner", aggregation_strategy="first")`, except that none begins or ends within a grapheme, such as a letter
    and its accent. Entities of different heads may overlap.

    The labels of other schemes are read, too: IOBES, BILOU and BMES, in upper or lower case, with the mark before or
    after the type, and types without marks. Labels that name no type (`LABEL_1`, a bare `B`) need `labels`.

    Args:
        model: a token classifier, or its folder, installed package (see `package_head`) or Hub name (`name@revision`),
            or several of these, which are applied to the same texts. A folder written by `export_onnx` works too. A
            model object is moved to `device` and `dtype` and prepared for inference, not copied.
        tokenizer: tokenizer of all models; by default each model's own, which requires that models are given by name.
        batch_size: windows per batch, at least 1; by default as many as have 32,768 pieces with their padding on a GPU,
            and 1,024 on a CPU. On a CPU, that is as fast as any other number on all engines.
        labels: what labels of the models mean, and how to rename types. A label becomes a type, a tag such as
            `B-Chemical`, or `O` (outside of entities); a type becomes another type, or `O` to leave it out. For example
            `{"LABEL_0": "O", "LABEL_1": "B-Chemical", "LABEL_2": "I-Chemical"}` or `{"Gene": "O"}`. The key `*` stands
            for all other types: `{"Chemical": "Chemical", "*": "O"}` keeps chemicals alone.
        min_score: leave out entities with a score below this, between 0 and 1; `best`: the score that gave each model
            the best F1 on its development set, from `report_heads`.
        context: what models read at once, instead of what their configurations say. `sentence`: a single sentence;
            `document`: a sentence with its neighbours, for models that were trained so, and as much of the document as
            fits for others.
        engine: `torch`, `onnx` (onnxruntime) or `openvino`, the last two on a CPU with models given by name; `auto` is
            the fastest of these on this machine, found by a short trial on texts of the sample. By default `torch`, or
            `onnx` for a folder written by `export_onnx`. The first use of another engine with a model exports it to the
            cache.
        precision: `exact` computes in float32: all engines find the same entities. `fast` computes with fewer bits,
            which changes a few entities: bfloat16 with `torch` and `openvino`, 8-bit integers with `onnx`, and with
            `auto` whatever is fastest and finds nearly the same entities (`engine_choice.TOLERANCE`). By default exact,
            or the precision of an exported file.
        dtype: data type of the weights with `torch`, instead of `precision`; by default that of a model object.
        device: where the models run; by default the accelerator if there is one and the engine can use it.

    Raises:
        InputError: there is no such model, or it isn't a trained token classifier; a model object without tokenizer; a
            tokenizer without offsets or of another model; an engine that isn't installed, or that doesn't fit the
            device, the `dtype`, the precision of an exported file or the type of the model; a batch size below 1; an
            unknown context; a score that isn't between 0 and 1, or `best` for a model that recommends none; labels that
            name no type, no label for words outside of entities, or a key of `labels` that no model has.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel | Sequence[str | Path | PreTrainedModel],
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        batch_size: int | None = None,
        labels: Mapping[str, str] | None = None,
        min_score: MinimumScore = 0.0,
        context: Context | None = None,
        engine: EngineOption | None = None,
        precision: Precision | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> None:
        models = [model] if isinstance(model, str | Path | PreTrainedModel) else list(model)
        if not models:
            raise InputError("no model given: name at least one token classifier")
        _check_engine(engine, precision, dtype)
        if context is not None:
            check_context(context)
        if device is None:
            on_cpu = engine in ("onnx", "openvino") or any(map(is_exported, models))
            accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
            device = "cpu" if on_cpu or accelerator is None else accelerator
        self.device = torch.device(device)
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size is {batch_size}: it must be at least 1")
        self._batch_size = batch_size
        self._pieces = _PIECES_AT_ONCE if self.device.type == "cpu" else _PIECES_ON_GPU
        check_score(min_score)
        self._groups: list[_Group] = []
        # Pinned: files of one model, loaded one after the other, must not come from different revisions.
        models = [one if isinstance(one, PreTrainedModel) else find_model(one).pinned for one in models]
        named = None if engine == "auto" else engine
        given = None if engine == "auto" else precision
        for source in models:
            # First: it verifies the files of both.
            loaded = load_engine(source, self.device, engine=named, precision=given, dtype=dtype)
            own_tokenizer = tokenizer or _load_tokenizer(source)
            text_tokenizer = TextTokenizer(own_tokenizer, loaded.config, context)
            _check_tokenizer(own_tokenizer, loaded, source, given=tokenizer is not None)
            name = "the model" if isinstance(source, PreTrainedModel) else str(source)
            least = best_score(source) if min_score == BEST else float(min_score)
            tags = interpret_labels(loaded.config.id2label, labels or {}, name=name)
            head = _Head(source, loaded, tags, least, getattr(loaded.config, TAGGING_SCHEME, None) == IOB2)
            if context and text_tokenizer.trained_with not in (None, context):
                logger.warning(
                    "%s was trained with context %s, as its config.json says: with %s, it may find other entities, and "
                    "the least score that it recommends doesn't apply",
                    *(name, text_tokenizer.trained_with, context),
                )
            group = next((group for group in self._groups if group.tokenizer.is_equivalent_to(text_tokenizer)), None)
            if group is None:
                self._groups.append(_Group(text_tokenizer, [head]))
            else:
                group.heads.append(head)
        check_renames(labels or {}, [head.engine.config.id2label for group in self._groups for head in group.heads])
        if engine == "auto":
            self._groups = self._with_engine(self.fastest_engine(precision or "exact"))._groups

    @check_call()
    def fastest_engine(self, precision: Precision = "exact", texts: Iterable[str] = ()) -> EngineChoice:
        """Return the engine that is fastest on this machine; see `choose_engine`.

        Args:
            precision: `exact`, for engines that find the same entities, or `fast`, for those with fewer bits, too.
            texts: some of those to annotate; without any, texts of the sample are tried.

        Raises:
            InputError: a model was given as an object, or doesn't fit any engine.
        """
        if any(isinstance(head.source, PreTrainedModel) for group in self._groups for head in group.heads):
            raise InputError("auto needs models in files: save the model, and give its folder", argument="engine")
        return choose_engine(self._with_engine, candidates(precision, on_cpu=self.device.type == "cpu"), texts)

    def _with_engine(self, choice: EngineChoice) -> Annotator:
        """Return a copy with other engines."""
        other = copy(self)
        other._groups = [
            replace(group, heads=[replace(head, engine=self._load(head, choice)) for head in group.heads])
            for group in self._groups
        ]
        return other

    def _load(self, head: _Head, choice: EngineChoice) -> Engine:
        return load_engine(head.source, self.device, engine=choice.engine, precision=choice.precision)

    @check_call()
    def annotate(self, texts: Iterable[str]) -> Iterator[list[Entity]]:
        """Yield the entities of each text, in the order of the texts; within a text, sorted by offsets and label.

        A few hundred texts are held in memory at a time. `text[entity.start : entity.end] == entity.text` always.

        Raises:
            InputError: an item isn't a string (its index is named), or `texts` is a single string.
        """
        yield from self._annotate((text, None) for text in map(_checked, count(), texts))

    def _annotate(self, texts: Iterator[tuple[str, Sequence[int] | None]]) -> Iterator[list[Entity]]:
        """Yield the entities of texts, each given with the first characters of its sentences, if these are known."""
        while batch := list(islice(texts, _TEXTS_AT_ONCE)):
            found: list[list[Entity]] = [[] for _ in batch]
            for group in self._groups:
                for entities, more in zip(found, self._annotate_batch(batch, group), strict=True):
                    entities += more
            for entities in found:
                yield sorted(entities, key=lambda entity: (entity.start, entity.end, entity.label))

    @check_call()
    def annotate_documents(self, documents: Iterable[Document], *, keep: bool = False) -> Iterator[Document]:
        """Yield documents with the entities found in them, which replace previous entities and their relations.

        Each passage of a document is annotated separately, so that no entity spans two passages. The passages of a
        document with tokens, as in CoNLL files, are its sentences, which are context for heads that read neighbours.

        Args:
            keep: keep previous entities and relations, too. Of two entities with the same place and label, the previous
                one stays.
        """
        rest = iter(documents)
        told = not any(group.tokenizer.reads_neighbours for group in self._groups)
        while batch := list(islice(rest, _TEXTS_AT_ONCE)):
            if not told and (alone := next((one for one in batch if one.tokens and not one.passages), None)):
                told = True
                logger.warning(
                    "document %s is a single sentence, which a head that was trained with document context reads "
                    "alone: in CoNLL files, -DOCSTART- marks the beginning of a document of several sentences",
                    alone.id,
                )
            parts = [_parts(document) for document in batch]
            checked = map(_checked, count(), (part.text for part in chain.from_iterable(parts)))
            found = self._annotate(zip(checked, (part.sentences for part in chain.from_iterable(parts)), strict=True))
            for document, of_document in zip(batch, parts, strict=True):
                entities = [
                    replace(entity, start=entity.start + part.start, end=entity.end + part.start)
                    for part in of_document
                    for entity in next(found)
                ]
                if keep:
                    yield replace(document, entities=_merged(document.entities, entities))
                    continue
                extra = {name: value for name, value in document.extra.items() if name != "relations"}
                yield replace(document, entities=entities, extra=extra)

    @torch.inference_mode()
    def _annotate_batch(self, texts: Sequence[tuple[str, Sequence[int] | None]], group: _Group) -> list[list[Entity]]:
        """Return the entities that the heads of a group find in each text."""
        tokenized = group.tokenizer.tokenize(*map(list, zip(*texts, strict=True)), heads=len(group.heads))
        windows = [(text, window) for text in tokenized for window in text.windows]
        windows.sort(key=lambda pair: -len(pair[1].ids))
        for batch in self._batches(windows):
            padded = group.tokenizer.pad([window for _, window in batch])
            inputs = {name: values.to(self.device) for name, values in padded.items()}
            rows = torch.tensor([row for row, (_, window) in enumerate(batch) for _ in window.places])
            places = torch.from_numpy(np.concatenate([window.places for _, window in batch]))
            ends = np.cumsum([len(window.places) for _, window in batch])[:-1]
            for number, head in enumerate(group.heads):
                scores, labels = head.engine.logits(**inputs)[rows, places].float().softmax(-1).max(-1)
                if not bool(scores.isfinite().all()):
                    raise InputError("the model computes NaN: its weights are damaged or its training diverged")
                per_window = (np.split(values.cpu().numpy(), ends) for values in (labels, scores))
                for (text, window), own_labels, own_scores in zip(batch, *per_window, strict=True):
                    own = slice(window.first_word, window.first_word + len(window.places))
                    text.labels[number, own], text.scores[number, own] = own_labels, own_scores
        return [_entities(text, group.heads) for text in tokenized]

    def _batches(self, windows: Sequence[tuple[TokenizedText, TextWindow]]) -> Iterator[Sequence[Any]]:
        """Divide windows and their texts into batches; the longest windows come first."""
        start = 0
        while start < len(windows):
            size = self._batch_size or max(self._pieces // len(windows[start][1].ids), 1)
            yield windows[start : start + size]
            start += size


@dataclass(frozen=True)
class _Head:
    """A token classifier, where it comes from, what each of its labels stands for, the least score of entities, and
    whether no entity begins with `I-`.
    """

    source: str | PreTrainedModel
    engine: Engine
    tags: dict[int, Tag]
    min_score: float
    strict: bool


@dataclass(frozen=True)
class _Part:
    """A text that is annotated by itself, its place in a document, and the first characters of its sentences, if these
    are known.
    """

    text: str
    start: int
    sentences: list[int] | None = None


def _parts(document: Document) -> list[_Part]:
    """Divide a document into its passages; passages that are sentences stay together."""
    if document.tokens:
        return [_Part(document.text, 0, [passage.start for passage in document.passages] or [0])]
    spans = [(passage.start, passage.end) for passage in document.passages] or [(0, len(document.text))]
    return [_Part(document.text[start:end], start) for start, end in spans]


@dataclass(frozen=True)
class _Group:
    """Heads that label the same windows."""

    tokenizer: TextTokenizer
    heads: list[_Head]


def best_score(model: str | PreTrainedModel) -> float:
    """Return the least score of entities that a head recommends.

    Raises:
        InputError: it recommends none, or isn't available.
    """
    found = recommended_score(model)
    if found is None:
        name = "the model" if isinstance(model, PreTrainedModel) else model
        raise InputError(
            f"{name} has no best score: run `bioptimus report` on the head first, or give a number",
            argument="min_score",
        )
    return found.best


def recommended_score(model: str | PreTrainedModel) -> MinScore | None:
    """Return the least score of entities that a head recommends, if it does.

    Raises:
        InputError: the head isn't available, or its configuration is damaged.
    """
    if isinstance(model, PreTrainedModel):
        return recommended_min_score(model.config)
    verify(model, only=("config.json",))
    return recommended_min_score(load_by_name(AutoConfig, model))


def _check_engine(engine: str | None, precision: str | None, dtype: torch.dtype | None) -> None:
    for name, value, known in (
        ("engine", engine, get_args(EngineOption)),
        ("precision", precision, get_args(Precision)),
    ):
        if value is not None and value not in known:
            raise InputError(f"must be one of {', '.join(known)}, not {value!r}", argument=name)
    if dtype is not None and (precision is not None or engine not in (None, "torch")):
        raise InputError("is for engine torch without a precision: leave it out", argument="dtype")


def _entities(text: TokenizedText, heads: Sequence[_Head]) -> list[Entity]:
    return [
        entity
        for number, head in enumerate(heads)
        for entity in text.entities(number, head.tags, strict=head.strict)
        if entity.score >= head.min_score
    ]


def _merged(previous: Iterable[Entity], found: Iterable[Entity]) -> list[Entity]:
    """Return all previous entities and those found elsewhere or with another label, in text order."""
    merged = list(previous)
    taken = {(entity.start, entity.end, entity.label) for entity in merged}
    merged += (entity for entity in found if (entity.start, entity.end, entity.label) not in taken)
    return sorted(merged, key=lambda entity: (entity.start, entity.end, entity.label))


def _checked(index: int, text: Any) -> str:
    try:
        text.encode()
    except (AttributeError, UnicodeEncodeError) as error:
        raise InputError(f"texts[{index}] is not a valid string: {format_error(error, limit=100)}") from error
    checked: str = text
    return checked


def _check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, engine: Engine, source: str | PreTrainedModel, *, given: bool
) -> None:
    """Raise if a tokenizer isn't that of a model, as far as that can be known."""
    name = "the model" if isinstance(source, PreTrainedModel) else source
    check_tokenizer(tokenizer, engine.config, name=name)
    own = engine.vocabulary
    if own is None and given and not isinstance(source, PreTrainedModel):
        try:
            own = vocabulary_hash(_load_tokenizer(source))
        except InputError:  # a folder may have no tokenizer
            return
    if own is not None and own != vocabulary_hash(tokenizer):
        raise InputError(
            f"it has other tokens than the tokenizer of {name}, or the same with other ids: give the model's own",
            argument="tokenizer",
        )


def _load_tokenizer(model: str | Path | PreTrainedModel) -> PreTrainedTokenizerBase:
    if isinstance(model, PreTrainedModel):
        raise InputError("a model object needs a tokenizer: pass tokenizer=, or give the model by folder or Hub name")
    tokenizer: PreTrainedTokenizerBase = load_by_name(AutoTokenizer, model)
    return tokenizer
