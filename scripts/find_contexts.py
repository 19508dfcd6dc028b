#!/usr/bin/env python
r"""Find sentences of a corpus that hold each new token, with their places: all tokens in one pass.

    python scripts/find_contexts.py --corpus abstracts.txt.gz --base_model google-bert/bert-base-uncased \
        --per_token 64 --num_proc 2 --output_dir runs/mine

Reads OUTPUT_DIR/tokenizer, or --tokenizer. With --words it looks for the words of a file, in all of the text.
Writes OUTPUT_DIR/contexts: an Arrow data set (`datasets.load_from_disk`) with the columns token, text, start, end,
document, and made.json with the counts. The work is done in parts, kept in OUTPUT_DIR/contexts.parts until the end:
given again after a kill, the same command goes on from there. With --engine ray any number of machines do it, without
parts to go on from.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bioptimus_hf.artifacts import RECORD, building, digest_of_rows, identity, is_finished
from bioptimus_hf.cli.legacy import CorpusOptions, RunOptions, StageOptions, parse, run
from bioptimus_hf.contexts.finder import select_tokens
from bioptimus_hf.contexts.local import search_documents
from bioptimus_hf.contexts.on_ray import find_contexts_on_ray
from bioptimus_hf.contexts.report import FEW, report_contexts
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import base_of_run, find_model, load_by_name
from bioptimus_hf.vocabulary.tokenizer import compare_vocabularies

logger = logging.getLogger("find_contexts")


@dataclass
class Options:
    """What is looked for."""

    base_model: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub name of the model that lacks the new tokens; default: the base of the run"},
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub name of the tokenizer that says what a word is; default OUTPUT_DIR/tokenizer"},
    )
    words: str | None = field(
        default=None,
        metadata={
            "help": "File of words to look for, one a line; default: tokens that the base model does not have. A word "
            "that is a token of --tokenizer is also found where that cuts a longer word into it (place|bo)"
        },
    )
    skip_unusable: bool = field(
        default=False, metadata={"help": "Leave out words that can never be found, instead of refusing them"}
    )
    jsonl: bool = field(
        default=False, metadata={"help": "Also write OUTPUT_DIR/contexts/contexts.jsonl, a JSON object a line"}
    )
    per_token: int = field(default=64, metadata={"help": "Sentences of a token at most, drawn uniformly"})
    engine: Literal["local", "ray"] = field(
        default="local",
        metadata={
            "help": "Where the work is done: by processes of this machine, or by Ray on any number of machines, a file "
            "a task (pip install 'bioptimus-hf[ray]'); changes no result"
        },
    )
    address: str | None = field(
        default=None,
        metadata={
            "help": "With --engine ray: of a cluster (host:port), or auto on one of its machines; by default "
            "Ray is started on this machine"
        },
    )


def main() -> None:
    """Find, count and save."""
    run_options, stage, corpus, options = parse(
        RunOptions, StageOptions, CorpusOptions, Options, section="find_contexts", description=__doc__
    )
    if options.engine == "ray" and corpus.max_megabytes is not None:
        raise InputError("--max_megabytes does not go with --engine ray, which reads files side by side: name fewer")
    if options.engine == "local" and options.address is not None:
        raise InputError("--address is that of a Ray cluster: give --engine ray too")
    folder = Path(run_options.output_dir) / "contexts"
    made = Path(run_options.output_dir) / "tokenizer"
    if options.tokenizer is None and not made.is_dir():
        raise InputError(f"{made} is not there: run scripts/train_vocabulary.py first, or name a --tokenizer")
    source = find_model(options.tokenizer or made)
    inputs = {**corpus.inputs(), "tokenizer": source.identity}
    if options.words:
        inputs["words"] = identity(options.words)
    else:
        base_model = base_of_run(run_options.output_dir, options.base_model)
        inputs["base_model"] = base_model.identity
    settings = {
        **corpus.settings(),
        "seed": run_options.seed,
        "per_token": options.per_token,
        "jsonl": options.jsonl,
    }
    if options.words:  # whoever looks for words of their own wants all of the text
        del settings["validation_share"]
        settings["skip_unusable"] = options.skip_unusable
    if is_finished(folder, inputs, settings, force=stage.force):
        return
    tokenizer = load_by_name(AutoTokenizer, source.folder)
    tokens = tokens_of_interest(options, tokenizer) if options.words else new_tokens(base_model.folder, tokenizer)
    parts = folder.with_name("contexts.parts")
    with building(folder, inputs, settings) as built:
        search: dict[str, Any] = {
            "tokenizer": tokenizer,
            "per_token": options.per_token,
            "seed": run_options.seed,
            "num_proc": stage.num_proc,
        }
        if options.engine == "ray":
            found = find_contexts_on_ray(
                corpus.corpus,
                tokens,
                text_column=corpus.text_column,
                errors=corpus.errors,
                validation_share=None if options.words else corpus.validation_share,
                address=options.address,
                **search,
            )
        else:
            documents = corpus.documents() if options.words else corpus.load()["train"]
            found = search_documents(documents, tokens, folder=parts, **search)
        report = report_contexts(found.contexts, tokens, tokenizer=tokenizer)
        found.contexts.save_to_disk(built.path)
        if options.jsonl:
            found.contexts.to_json(built.path / "contexts.jsonl", force_ascii=False)
        built.facts |= {
            "engine": options.engine,
            "sentences": found.sentences,
            "occurrences": found.occurrences,
            "tokens": len(report.contexts),
            "contexts": len(found.contexts),
            "digest": digest_of_rows(found.contexts),
            **report.facts(),
            "merged_tokens": select_tokens(tokens, tokenizer).merged,
            "left_out": select_tokens(read_words(Path(options.words)), tokenizer).unusable if options.words else {},
        }
    if options.engine == "local":
        shutil.rmtree(parts)
    logger.info(
        "%(contexts)d contexts of %(tokens)d tokens, which occur %(occurrences)d times: %(found_as_words)d found as "
        "words, %(found_inside_words)d inside words only, %(not_found)d not found",
        built.facts,
    )
    if report.not_found:
        named = ", ".join(report.not_found[:10]) + (", ..." if report.not_found[10:] else "")
        logger.info("not found: %s (all of them, and those with few contexts, in %s)", named, folder / RECORD)
    logger.info("tokens by their number of contexts: %s", in_bands(report.coverage, options.per_token))


def in_bands(coverage: Mapping[int, int], per_token: int) -> str:
    """Put a histogram in words: none, few, more, and as many as asked for."""
    edges = [0, *(edge for edge in (1, FEW, 16) if edge < per_token), per_token]
    bands = []
    for first, after in pairwise([*edges, per_token + 1]):
        name = str(first) if after == first + 1 else f"{first} to {after - 1}"
        bands.append(f"{name}: {sum(tokens for contexts, tokens in coverage.items() if first <= contexts < after)}")
    return ", ".join(bands)


def new_tokens(base_model: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the tokens that the base model does not have."""
    return list(compare_vocabularies(load_by_name(AutoTokenizer, base_model), tokenizer).new)


def tokens_of_interest(options: Options, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the words of the file that can be found."""
    words = read_words(Path(str(options.words)))
    unusable = select_tokens(words, tokenizer).unusable
    if unusable and not options.skip_unusable:
        word, reason = next(iter(unusable.items()))
        raise InputError(
            f"{options.words}: {len(unusable)} of {len(words)} lines can never be found, {word!r} for one ({reason}): "
            f"take them out, or --skip_unusable"
        )
    for word, reason in unusable.items():
        logger.warning("left out %r: %s", word, reason)
    return [word for word in words if word not in unusable]


def read_words(path: Path) -> list[str]:
    """Read a word a line; empty lines are left out."""
    try:
        words = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except OSError as error:
        raise InputError(f"--words {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--words {path} is not valid UTF-8 at byte {error.start}: convert or mend it") from error
    if not any(words):
        raise InputError(f"--words {path} holds no words")
    return [word for word in words if word]


if __name__ == "__main__":
    run(main)
