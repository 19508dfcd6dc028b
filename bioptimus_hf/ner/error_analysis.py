"""Compare predicted with annotated entities: what is wrong, for which mentions, and what is confused most often.

The kinds of errors are those of MUC-5 (Chinchor and Sundheim 1993) and SemEval-2013 task 9.1 (Segura-Bedmar et al.
2013), with their "incorrect" divided by what is wrong.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bioptimus_hf.ner.scores import Span, entity_spans, ratios

CORRECT, WRONG_TYPE, WRONG_BOUNDARY = "correct", "wrong type", "wrong boundary"
WRONG_BOTH, MISSED, SPURIOUS = "wrong boundary and type", "missed", "spurious"
KINDS = (CORRECT, WRONG_TYPE, WRONG_BOUNDARY, WRONG_BOTH, MISSED, SPURIOUS)
CONFUSIONS = 20
"""Number of confusions in a report."""
_EXAMPLES = 3  # sentences of each of them
_LONGEST = 5  # words; longer mentions are counted together

Pair = tuple[Span | None, Span | None]
"""An annotated entity and the predicted one that it is compared with; None if there is none."""
Mention = tuple[str, str]
"""The words of an entity, separated by blanks and in lower case, and its type."""


@dataclass(frozen=True)
class Sentence:
    """A sentence with its annotated and its predicted entities.

    Attributes:
        words: of the sentence.
        gold: annotated entities, in order.
        predicted: predicted entities, in order.
    """

    words: Sequence[str]
    gold: Sequence[Span]
    predicted: Sequence[Span]

    def mention(self, span: Span) -> Mention:
        """Return the words and the type of an entity, as mentions are compared."""
        begin, end, kind = span
        return " ".join(self.words[begin:end]).lower(), kind


def sentences_of(
    words: Sequence[Sequence[str]], gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> list[Sentence]:
    """Return sentences with the entities of their tags, in strict IOB2."""
    return [
        Sentence(of_words, entity_spans(of_gold), entity_spans(of_predicted))
        for of_words, of_gold, of_predicted in zip(words, gold, predicted, strict=True)
    ]


def mentions_in(words: Sequence[Sequence[str]], tags: Sequence[Sequence[str]]) -> set[Mention]:
    """Return the mentions of annotated sentences, of which a head is said to have seen them in training."""
    return {sentence.mention(span) for sentence in sentences_of(words, tags, tags) for span in sentence.gold}


def align(gold: Sequence[Span], predicted: Sequence[Span]) -> list[Pair]:
    """Pair annotated entities with predicted ones that overlap them; each occurs in one pair.

    Of all ways to do so it takes the one with most pairs, then with most pairs of equal type, then with most words in
    common.

    Args:
        gold: entities of a sentence, in order and without overlaps.
        predicted: likewise.
    """
    both = set(gold) & set(predicted)  # overlap nothing else
    pairs: list[Pair] = [(span, span) for span in both]
    gold, predicted = ([span for span in spans if span not in both] for spans in (gold, predicted))
    best = [[(0, 0, 0)] * (len(predicted) + 1) for _ in range(len(gold) + 1)]
    for row, true in enumerate(gold, start=1):
        for column, found in enumerate(predicted, start=1):
            paired = best[row - 1][column - 1]
            if words := _words_in_common(true, found):
                paired = (paired[0] + 1, paired[1] + (true[2] == found[2]), paired[2] + words)
            best[row][column] = max(paired, best[row - 1][column], best[row][column - 1])
    row, column = len(gold), len(predicted)
    while row or column:
        if column and best[row][column] == best[row][column - 1]:
            column -= 1
            pairs.append((None, predicted[column]))
        elif row and best[row][column] == best[row - 1][column]:
            row -= 1
            pairs.append((gold[row], None))
        else:
            row, column = row - 1, column - 1
            pairs.append((gold[row], predicted[column]))
    return sorted(pairs, key=lambda pair: min(span for span in pair if span))


def kind_of(pair: Pair) -> str:
    """Return which of `KINDS` a pair is."""
    gold, predicted = pair
    if gold is None or predicted is None:
        return SPURIOUS if gold is None else MISSED
    same_boundaries, same_type = gold[:2] == predicted[:2], gold[2] == predicted[2]
    if same_boundaries:
        return CORRECT if same_type else WRONG_TYPE
    return WRONG_BOUNDARY if same_type else WRONG_BOTH


def analyse(sentences: Sequence[Sentence], seen: Collection[Mention]) -> dict[str, Any]:
    """Count what is correct and what is wrong.

    Args:
        sentences: from `sentences_of`.
        seen: mentions of the training set.

    Returns:
        `sentences` (their number); `kinds` (the number of pairs of each of `KINDS`); `all`, and by name `seen`
        (`seen` in the training set or `unseen`), `length` (in words) and `type`, each with `precision`, `recall`,
        `f1`, and the numbers of `mentions`, of entities `found`, and of those that are `correct`; and `confusions`,
        see the function of that name.
    """
    pairs = [(sentence, pair) for sentence in sentences for pair in align(sentence.gold, sentence.predicted)]
    kinds = Counter(kind_of(pair) for _, pair in pairs)
    groups = {
        "seen": lambda sentence, span: "seen" if sentence.mention(span) in seen else "unseen",
        "length": lambda sentence, span: _length(span),
        "type": lambda sentence, span: span[2],
    }
    return {
        "sentences": len(sentences),
        "kinds": {kind: kinds[kind] for kind in KINDS},
        "all": _scores(pairs, lambda sentence, span: "all").get("all", _row(0, 0, 0)),
        **{name: _scores(pairs, group) for name, group in groups.items()},
        "confusions": confusions(sentences),
    }


def confusions(sentences: Sequence[Sentence], limit: int = CONFUSIONS) -> list[dict[str, Any]]:
    """Return the most frequent errors: of the same kind, with the same words and types, in any case.

    Returns:
        For each error `kind`, `gold` and `predicted` (`text` and `type`, or None), `count`, and `examples`: up to three
        sentences with their `number` (from 1), `text` (words separated by blanks), and the `gold` and `predicted`
        places in the text (start and end in characters, or None).
    """
    places: dict[tuple[str, Mention | None, Mention | None], list[tuple[int, Pair]]] = defaultdict(list)
    for number, sentence in enumerate(sentences):
        for pair in align(sentence.gold, sentence.predicted):
            if (kind := kind_of(pair)) != CORRECT:
                gold, predicted = (sentence.mention(span) if span else None for span in pair)
                places[kind, gold, predicted].append((number, pair))
    frequent = sorted(places.items(), key=lambda item: -len(item[1]))[:limit]  # stable: in the order of the text
    return [
        {
            "kind": kind,
            **{name: _described(sentences[found[0][0]], span) for name, span in _named(found[0][1])},
            "count": len(found),
            "examples": _examples(sentences, found),
        }
        for (kind, _, _), found in frequent
    ]


def _words_in_common(one: Span, other: Span) -> int:
    return max(0, min(one[1], other[1]) - max(one[0], other[0]))


def _length(span: Span) -> str:
    words = span[1] - span[0]
    return f"{words} word{'s' * (words > 1)}" if words < _LONGEST else f"{_LONGEST} words or more"


def _scores(pairs: Sequence[tuple[Sentence, Pair]], group: Any) -> dict[str, dict[str, Any]]:
    """Return the scores of the mentions of each group, sorted by name.

    Args:
        group: returns the group of an entity of a sentence. An entity that is predicted correctly is in the same group
            as the annotated one.
    """
    counts: Mapping[str, Counter[str]] = defaultdict(Counter)
    for sentence, (gold, predicted) in pairs:
        if gold:
            counts[group(sentence, gold)]["mentions"] += 1
        if predicted:
            counts[group(sentence, predicted)]["found"] += 1
        if gold and gold == predicted:
            counts[group(sentence, gold)]["correct"] += 1
    return {
        name: _row(of_group["correct"], of_group["found"], of_group["mentions"])
        for name, of_group in sorted(counts.items())
    }


def _row(correct: int, found: int, mentions: int) -> dict[str, Any]:
    scores = ratios(correct, found, mentions)
    return {
        **{name: scores[name] for name in ("precision", "recall", "f1")},
        **{"mentions": mentions, "found": found, "correct": correct},
    }


def _named(pair: Pair) -> Iterator[tuple[str, Span | None]]:
    yield from zip(("gold", "predicted"), pair, strict=True)


def _described(sentence: Sentence, span: Span | None) -> dict[str, str] | None:
    return {"text": " ".join(sentence.words[span[0] : span[1]]), "type": span[2]} if span else None


def _examples(sentences: Sequence[Sentence], found: Sequence[tuple[int, Pair]]) -> list[dict[str, Any]]:
    """Return the first sentences of an error, each once."""
    first: dict[int, Pair] = {}
    for number, pair in found:
        first.setdefault(number, pair)
    return [_example(number, sentences[number], pair) for number, pair in list(first.items())[:_EXAMPLES]]


def _example(number: int, sentence: Sentence, pair: Pair) -> dict[str, Any]:
    return {
        "number": number + 1,
        "text": " ".join(sentence.words),
        **{name: _place(sentence, span) for name, span in _named(pair)},
    }


def _place(sentence: Sentence, span: Span | None) -> list[int] | None:
    """Return start and end of an entity in the text of its sentence, in characters."""
    if span is None:
        return None
    start = sum(len(word) + 1 for word in sentence.words[: span[0]])
    return [start, start + len(" ".join(sentence.words[span[0] : span[1]]))]
