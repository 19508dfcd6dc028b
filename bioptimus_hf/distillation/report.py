"""Report on new embeddings: how they were made, their norms, their nearest neighbours, and other initializers."""

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
from bioptimus_hf.distillation.initialization import NewRows, initial_rows, pieces_of
from bioptimus_hf.distillation.options import Initializer
from bioptimus_hf.plots import save_plot
from bioptimus_hf.vocabulary.tokenizer import MARK, compare_vocabularies, real_ids

_ORIGINS = {
    "random": "noise",
    "subtoken_mean": "mean of the pieces",
    "contextual_mean": "hidden states in contexts",
    "contextual_mean_scaled": "hidden states in contexts, scaled",
    "token_distillation": "training in contexts",
}
_LISTED = 40  # tokens per list
_EXAMPLES = 20  # words whose neighbours are listed
_NEIGHBOURS = 6
_SHORTEST_EXAMPLE = 6  # letters


@dataclass(frozen=True)
class RowsReport:
    """New embeddings compared with the embedding table that they join.

    Attributes:
        counts: kind of token (starts of words, continuations) to the origin of its embedding to the number of tokens.
        old_norms: Euclidean norm of each embedding in the base's table that stands for text.
        new_norms: Euclidean norm of each new embedding.
        neighbours: for some new words, the nearest tokens by cosine: "before", to the mean of the word's pieces in the
            old table (without these pieces), and "after", to its new embedding in the new table.
        cosines: mean cosine between the embeddings that two initializers give to the same token, by "first, second";
            if there are vectors from contexts, over the tokens that have one.
        few_contexts: tokens with fewer than `contexts.report.FEW` contexts, and the number of contexts.
        without_contexts: tokens that need contexts and have none.
        left_out: tokens that have contexts but weren't made from them, because the maximum number of tokens was reached
            or because their contexts don't split them into whole pieces, which token distillation requires.
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
        """Return the report for JSON, with percentiles in place of the norms."""
        facts = asdict(self)
        for name in ("old_norms", "new_norms"):
            norms = facts.pop(name)
            facts[name] = (
                {str(p): round(float(np.percentile(norms, p)), 4) for p in (0, 5, 50, 95, 100)} if norms else {}
            )
        return facts

    def markdown(self) -> str:
        """Return the report as Markdown. It shows `norms.png`, which `plot` draws."""
        origins = [
            f"{kind} | {origin} | {number:,}"
            for kind, by_origin in self.counts.items()
            for origin, number in by_origin.items()
        ]
        norms = [
            " | ".join([name, *(f"{np.percentile(values, p):.3f}" for p in (5, 50, 95))])
            for name, values in (("base", self.old_norms), ("new", self.new_norms))
            if values
        ]
        nearest = [
            f"{word} | {' '.join(tokens['before'])} | {' '.join(tokens['after'])}"
            for word, tokens in self.neighbours.items()
        ]
        cosines = [f"{pair} | {cosine:.3f}" for pair, cosine in self.cosines.items()]
        lines = ["# New embeddings", *_table("tokens | made from | number", origins)]
        lines += ["", "## Norms", *_table("embeddings | 5th percentile | median | 95th percentile", norms)]
        lines += ["", "![Norms of base and new embeddings](norms.png)"]
        if nearest:
            lines += ["", "## Nearest tokens by cosine"]
            lines += _table("new word | before: to the mean of its pieces | after: to its new embedding", nearest)
        if cosines:
            lines += ["", "## Agreement between initializers", *_table("initializers | mean cosine", cosines)]
        few = [f"`{token}` {number}" for token, number in self.few_contexts.items()]
        lines += _list(f"Fewer than {FEW} contexts", few)
        lines += _list("No contexts", [f"`{token}`" for token in self.without_contexts])
        lines += _list("Contexts found but not used", [f"`{token}`" for token in self.left_out])
        return "\n".join(lines) + "\n"

    def plot(self, path: Path) -> None:
        """Plot histograms of the norms."""
        norms = {"base": self.old_norms, "new": self.new_norms}

        def draw(axes: Any) -> None:
            edges = np.linspace(0, 1.05 * max(chain(*norms.values())), 80).tolist()
            for label, values in norms.items():
                if values:
                    axes.hist(values, bins=edges, density=True, alpha=0.6, label=label)
            axes.set(xlabel="Euclidean norm of the embedding", ylabel="density")
            axes.legend()

        save_plot(path, draw)


@torch.no_grad()
def inspect_rows(
    model: BertForMaskedLM,
    source: PreTrainedTokenizerBase,
    target: PreTrainedTokenizerBase,
    new: NewRows,
    *,
    contexts: Mapping[str, int] | None = None,
) -> RowsReport:
    """Report on new embeddings before they are transplanted.

    Args:
        model: the base model, still with its own vocabulary.
        source: tokenizer of the base model.
        target: tokenizer that the model will have.
        new: the new embeddings, from `initial_rows`. If it was given vectors, the initializers that use them are
            compared as well.
        contexts: token to its number of contexts.
    """
    table, contexts = model.get_input_embeddings().weight.detach(), contexts or {}
    return RowsReport(
        counts=_count_origins(new),
        old_norms=table[real_ids(source)].norm(dim=1).tolist(),
        new_norms=[float(row.norm()) for row in new.rows.values()],
        neighbours=_find_neighbours(table, source, target, new),
        cosines=_compare_initializers(model, source, target, new) if new.rows else {},
        few_contexts={token: contexts[token] for token in new.rows if 0 < contexts.get(token, 0) < FEW},
        without_contexts=[token for token in new.without_vectors if not contexts.get(token)],
        left_out=[token for token in new.without_vectors if contexts.get(token)],
    )


def _table(header: str, rows: list[str]) -> list[str]:
    """Return the lines of a Markdown table, whose cells are separated by ` | `."""
    return ["", f"| {header} |", "|" + " --- |" * len(header.split(" | ")), *(f"| {row} |" for row in rows)]


def _list(title: str, tokens: list[str]) -> list[str]:
    """Return the lines of a section that lists tokens; none if there are no tokens."""
    if not tokens:
        return []
    more = ", ..." if len(tokens) > _LISTED else ""
    return ["", f"## {title}", "", f"{len(tokens):,} tokens: {', '.join(tokens[:_LISTED])}{more}"]


def _count_origins(new: NewRows) -> dict[str, dict[str, int]]:
    without_vectors, unknown = set(new.without_vectors), set(new.unknown)
    counts: dict[str, dict[str, int]] = {}
    for token in new.rows:
        kind = "continuations (##)" if token.startswith(MARK) else "words and starts of words"
        if token in unknown:
            origin = "mean of the table"
        else:
            origin = _ORIGINS["subtoken_mean" if token in without_vectors else new.initializer]
        by_origin = counts.setdefault(kind, {})
        by_origin[origin] = by_origin.get(origin, 0) + 1
    return counts


def _find_neighbours(
    table: torch.Tensor, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase, new: NewRows
) -> dict[str, dict[str, list[str]]]:
    from_pieces = {*new.without_vectors, *new.unknown}
    words = sorted(
        word for word in new.rows if word.isalpha() and len(word) >= _SHORTEST_EXAMPLE and word not in from_pieces
    )
    pieces = pieces_of(words, source)
    words = [word for word in words if pieces[word]]  # otherwise there is no mean of pieces to compare with
    chosen = random.Random(new.seed).sample(words, min(_EXAMPLES, len(words)))
    old_ids = real_ids(source)
    old_names = source.convert_ids_to_tokens(old_ids.tolist())
    real, ids = set(old_names), source.get_vocab()
    shared = [token for token in compare_vocabularies(source, target).shared if token in real]
    new_names = [*shared, *new.rows]
    new_table = torch.cat([table[[ids[token] for token in shared]], *(row.unsqueeze(0) for row in new.rows.values())])
    neighbours = {}
    for word in chosen:
        own = {source.convert_ids_to_tokens(piece) for piece in pieces[word]}
        before = _nearest(table[pieces[word]].mean(dim=0), table[old_ids], old_names, own)
        after = _nearest(new.rows[word], new_table, new_names, {word})
        neighbours[word] = {"before": before, "after": after}
    return neighbours


def _nearest(row: torch.Tensor, table: torch.Tensor, names: list[str], excluded: set[str]) -> list[str]:
    """Return the names of the table's rows that are nearest to a row, nearest first."""
    cosines = torch.nn.functional.cosine_similarity(row.unsqueeze(0), table)
    order = cosines.argsort(descending=True, stable=True)[: _NEIGHBOURS + len(excluded)].tolist()
    return [names[place] for place in order if names[place] not in excluded][:_NEIGHBOURS]


def _compare_initializers(
    model: BertForMaskedLM, source: PreTrainedTokenizerBase, target: PreTrainedTokenizerBase, new: NewRows
) -> dict[str, float]:
    compared: list[Initializer] = ["random", "subtoken_mean"]
    if new.vectors and new.initializer == "token_distillation":
        compared += ["token_distillation"]
    elif new.vectors:
        compared += ["contextual_mean", "contextual_mean_scaled"]
    rows = {}
    for initializer in compared:
        made = initial_rows(model, source, target, initializer=initializer, vectors=new.vectors, seed=new.seed).rows
        rows[initializer] = torch.stack([row for token, row in made.items() if not new.vectors or token in new.vectors])
    return {
        f"{first}, {second}": round(float(torch.nn.functional.cosine_similarity(rows[first], rows[second]).mean()), 4)
        for first, second in combinations(rows, 2)
    }
