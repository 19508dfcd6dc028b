"""What the new rows of an embedding table look like, for a reader to judge a distillation by."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertForMaskedLM, PreTrainedTokenizerBase

from bioptimus_hf.contexts.report import FEW
from bioptimus_hf.distillation.initialization import Initializer, NewRows, initial_rows, pieces_of
from bioptimus_hf.plots import save_plot
from bioptimus_hf.vocabulary.tokenizer import MARK, compare_vocabularies, real_ids

_MADE_OF = {
    "random": "noise",
    "subtoken_mean": "rows of pieces",
    "contextual_mean": "states in contexts",
    "contextual_mean_scaled": "states in contexts, scaled",
    "token_distillation": "training in contexts",
}
_NAMED = 40  # tokens without contexts, or with few
_EXAMPLES = 20  # words whose neighbours are listed
_NEIGHBOURS = 6
_SHORTEST_EXAMPLE = 6  # letters


@dataclass(frozen=True)
class RowsReport:
    """New rows beside those of the table they come to.

    Attributes:
        counts: kind of token (words and their beginnings, continuations) to what its rows are made of to how many.
        old_norms: length of each row of the table that stands for text.
        new_norms: length of each new row.
        neighbours: of some new words, the tokens whose rows are nearest by cosine: to the mean of the word's pieces in
            the old table (these pieces left out), and to its new row in the new one.
        cosines: mean cosine between the rows that two initialisers give to the same token, under "one, other"; over the
            tokens that are made from contexts, where there are such.
        few_contexts: tokens with fewer contexts than `coverage.FEW`, and how many each has.
        without_contexts: tokens that are to be made from contexts and have none.
        left_out: tokens that have contexts and are not made from them: more than were asked for, or their spans are not
            made of whole pieces of the base, which token distillation needs.
    """

    counts: dict[str, dict[str, int]]
    old_norms: list[float]
    new_norms: list[float]
    neighbours: dict[str, dict[str, list[str]]]
    cosines: dict[str, float]
    few_contexts: dict[str, int]
    without_contexts: list[str]
    left_out: list[str]

    def facts(self) -> dict[str, Any]:
        """Return all of it for JSON, norms as percentiles."""
        facts = asdict(self)
        for name in ("old_norms", "new_norms"):
            norms = facts.pop(name)
            facts[name] = (
                {str(p): round(float(np.percentile(norms, p)), 4) for p in (0, 5, 50, 95, 100)} if norms else {}
            )
        return facts

    def markdown(self) -> str:
        """Return a page to read; it shows `norms.png`, from `plot`."""
        lines = ["# The new rows", "", "| tokens | rows made of | number |", "| --- | --- | --- |"]
        lines += [
            f"| {kind} | {origin} | {number:,} |"
            for kind, made in self.counts.items()
            for origin, number in made.items()
        ]
        lines += ["", "## Length", "", "| rows | 5 % | median | 95 % |", "| --- | --- | --- | --- |"]
        for name, norms in (("of the base", self.old_norms), ("new", self.new_norms)):
            if norms:
                lines.append("| " + " | ".join([name, *(f"{np.percentile(norms, p):.3f}" for p in (5, 50, 95))]) + " |")
        lines += ["", "![length of old and new rows](norms.png)", "", "## Nearest by cosine", ""]
        lines += ["| new word | before: to the mean of its pieces | now: to its row |", "| --- | --- | --- |"]
        lines += [
            f"| {word} | {' '.join(near['before'])} | {' '.join(near['after'])} |"
            for word, near in self.neighbours.items()
        ]
        lines += ["", "## Initialisers compared", "", "| initialisers | mean cosine |", "| --- | --- |"]
        lines += [f"| {pair} | {cosine:.3f} |" for pair, cosine in self.cosines.items()]
        few = [f"`{token}` {number}" for token, number in self.few_contexts.items()]
        without, left_out = ([f"`{token}`" for token in each] for each in (self.without_contexts, self.left_out))
        for title, tokens in (
            (f"Fewer than {FEW} contexts", few),
            ("Without contexts", without),
            ("With contexts, and not made from them", left_out),
        ):
            if tokens:
                more = ", ..." if tokens[_NAMED:] else ""
                lines += ["", f"## {title}", "", f"{len(tokens):,} tokens: {', '.join(tokens[:_NAMED])}{more}"]
        return "\n".join(lines) + "\n"

    def plot(self, path: Path) -> None:
        """Draw how long old and new rows are."""
        norms = {"rows of the base": self.old_norms, "new rows": self.new_norms}

        def draw(axes: Any) -> None:
            edges = np.linspace(0, 1.05 * max(chain(*norms.values())), 80).tolist()
            for label, each in norms.items():
                if each:
                    axes.hist(each, bins=edges, density=True, alpha=0.6, label=label)
            axes.set(xlabel="length (Euclidean norm)", ylabel="density")
            axes.legend()

        save_plot(path, draw)


@torch.no_grad()
def inspect_rows(
    model: BertForMaskedLM,
    source: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase,
    new: NewRows,
    *,
    initializer: Initializer,
    vectors: Mapping[str, torch.Tensor] | None = None,
    contexts: Mapping[str, int] | None = None,
    seed: int = 0,
) -> RowsReport:
    """Look at new rows before they are transplanted.

    Args:
        model: the base model, with its own vocabulary still.
        source: its tokenizer.
        target: the tokenizer that it is to have.
        new: from `initial_rows`.
        initializer: which made them.
        vectors: what `initial_rows` was given; without them only the initialisers that need none are compared.
        contexts: token to the number of its contexts.
        seed: of the choice of the words whose neighbours are listed.
    """
    table, contexts = model.get_input_embeddings().weight.detach(), contexts or {}
    return RowsReport(
        counts=_counts(new, initializer),
        old_norms=table[real_ids(source)].norm(dim=1).tolist(),
        new_norms=[float(row.norm()) for row in new.rows.values()],
        neighbours=_neighbours(table, source, target, new, seed),
        cosines=_cosines(model, source, target, initializer, vectors, seed) if new.rows else {},
        few_contexts={token: contexts[token] for token in new.rows if 0 < contexts.get(token, 0) < FEW},
        without_contexts=[token for token in new.fallen_back if not contexts.get(token)],
        left_out=[token for token in new.fallen_back if contexts.get(token)],
    )


def _counts(new: NewRows, initializer: Initializer) -> dict[str, dict[str, int]]:
    without, unknown = set(new.fallen_back), set(new.unknown)
    counts: dict[str, dict[str, int]] = {}
    for token in new.rows:
        kind = "continuations (##)" if token.startswith(MARK) else "words and their beginnings"
        made_of = (
            "the table's mean" if token in unknown else "rows of pieces" if token in without else _MADE_OF[initializer]
        )
        counts.setdefault(kind, {}).setdefault(made_of, 0)
        counts[kind][made_of] += 1
    return counts


def _neighbours(
    table: torch.Tensor,
    source: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase,
    new: NewRows,
    seed: int,
) -> dict[str, dict[str, list[str]]]:
    fallen_back = {*new.fallen_back, *new.unknown}
    words = sorted(
        word for word in new.rows if word.isalpha() and len(word) >= _SHORTEST_EXAMPLE and word not in fallen_back
    )
    pieces = pieces_of(words, source)
    words = [word for word in words if pieces[word]]  # with rows of their own before
    chosen = random.Random(seed).sample(words, min(_EXAMPLES, len(words)))
    old_ids = real_ids(source)
    old_names = source.convert_ids_to_tokens(old_ids.tolist())
    has_row, ids = set(old_names), source.get_vocab()
    shared = [token for token in compare_vocabularies(source, target).shared if token in has_row]
    new_names = [*shared, *new.rows]
    new_table = torch.cat([table[[ids[token] for token in shared]], *(row.unsqueeze(0) for row in new.rows.values())])
    found = {}
    for word in chosen:
        own = {source.convert_ids_to_tokens(piece) for piece in pieces[word]}
        before = _nearest(table[pieces[word]].mean(dim=0), table[old_ids], old_names, own)
        after = _nearest(new.rows[word], new_table, new_names, {word})
        found[word] = {"before": before, "after": after}
    return found


def _nearest(row: torch.Tensor, table: torch.Tensor, names: list[str], not_these: set[str]) -> list[str]:
    cosines = torch.nn.functional.cosine_similarity(row.unsqueeze(0), table)
    order = cosines.argsort(descending=True, stable=True)[: _NEIGHBOURS + len(not_these)].tolist()
    return [names[place] for place in order if names[place] not in not_these][:_NEIGHBOURS]


def _cosines(
    model: BertForMaskedLM,
    source: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase,
    initializer: Initializer,
    vectors: Mapping[str, torch.Tensor] | None,
    seed: int,
) -> dict[str, float]:
    compared: list[Initializer] = ["random", "subtoken_mean"]
    if vectors:
        own: list[Initializer] = ["contextual_mean", "contextual_mean_scaled"]
        compared += ["token_distillation"] if initializer == "token_distillation" else own
    rows = {}
    for other in compared:
        made = initial_rows(model, source, target, initializer=other, vectors=vectors, seed=seed).rows
        rows[other] = torch.stack([row for token, row in made.items() if not vectors or token in vectors])
    return {
        f"{one}, {other}": round(float(torch.nn.functional.cosine_similarity(rows[one], rows[other]).mean()), 4)
        for one, other in combinations(rows, 2)
    }
