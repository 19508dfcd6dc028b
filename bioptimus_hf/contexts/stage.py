"""Make the contexts of a run: find them, count them and save them."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import RECORD, Run, building, digest_of_rows, identity, is_finished, verify
from bioptimus_hf.contexts.fetching import Found
from bioptimus_hf.contexts.local import search_documents
from bioptimus_hf.contexts.on_ray import check_corpus, find_contexts_on_ray
from bioptimus_hf.contexts.options import ContextsOptions
from bioptimus_hf.contexts.query import ContextQuery, select_tokens
from bioptimus_hf.contexts.report import ContextsReport, report_contexts
from bioptimus_hf.corpus.dataset import Contents, check_same_text, contents_of, load_text, split_validation
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import base_of_run, check_base, find_model, load_by_name
from bioptimus_hf.progress import progress_of_datasets
from bioptimus_hf.vocabulary.tokenizer import compare_vocabularies

logger = logging.getLogger(__name__)

_PARTS = "contexts.parts"


@check_call()
def make_contexts(run: Run, corpus: Corpus, options: ContextsOptions) -> Path:
    """Find contexts of the new tokens, or of a list of words, and save them; skipped if this was already done.

    New tokens are searched for in the training documents, words of your own in all documents. The result is an Arrow
    data set with the columns of `find_contexts`. A local search that was killed continues where it stopped.

    Returns:
        The folder of the contexts, `contexts` in that of the run.

    Raises:
        InputError: the corpus, a model or the file of words can't be read, a word can never be found, or the folder
            contains another result.
    """
    with run.working_on("contexts") as folder:
        _make(folder, run, corpus, options)
    return folder


def _make(folder: Path, run: Run, corpus: Corpus, options: ContextsOptions) -> None:
    if options.engine == "ray":
        check_corpus(corpus)
    tokenizer_of_run = run.root / "tokenizer"
    if options.tokenizer is None and not tokenizer_of_run.is_dir():
        raise InputError(f"{tokenizer_of_run} doesn't exist: train a vocabulary first, or name a tokenizer")
    source = find_model(options.tokenizer or tokenizer_of_run)
    verify(source.folder)
    contents = contents_of(corpus.corpus)
    inputs = {"corpus": contents.identity, "tokenizer": source.identity}
    settings = {**corpus.settings(), "seed": run.seed, "per_token": options.per_token, "jsonl": options.jsonl}
    if options.words:
        inputs["words"] = identity(options.words)
        del settings["validation_share"]  # words are searched for in all documents
        settings["skip_unusable"] = options.skip_unusable
    else:
        check_same_text(run.root, corpus, inputs["corpus"])
        base_model = base_of_run(run.output_dir, options.base_model)
        inputs["base_model"] = base_model.identity
    if is_finished(folder, inputs, settings, force=run.force):
        return
    tokenizer = load_by_name(AutoTokenizer, source.folder)
    if not options.words:
        check_base(base_model.folder)
    tokens = _find_words(options, tokenizer) if options.words else _new_tokens(base_model.folder, tokenizer)
    query = ContextQuery(tokens, tokenizer, options.per_token, run.seed)
    with building(folder, inputs, settings, sources={"tokenizer": Path(source.folder)}) as stage:
        found, text = _search(run, corpus, contents, options, query)
        report = report_contexts(found.contexts, tokens, tokenizer=tokenizer)
        with progress_of_datasets():
            found.contexts.save_to_disk(stage.path)
        if options.jsonl:
            found.contexts.to_json(stage.path / "contexts.jsonl", force_ascii=False)
        stage.facts |= {"text": text, **_facts(options, query, found, report)}
    if options.engine == "local":
        shutil.rmtree(run.root / _PARTS)
    _log(stage.facts, report, options.per_token, folder / RECORD)


def _search(
    run: Run, corpus: Corpus, contents: Contents, options: ContextsOptions, query: ContextQuery
) -> tuple[Found, dict[str, int]]:
    """Search all documents for words, or the training documents for new tokens; return also what was read."""
    if options.engine == "ray":
        found = find_contexts_on_ray(
            corpus,
            query,
            contents=contents,
            training_only=not options.words,
            num_proc=run.num_proc,
            address=options.address,
        )
        return found, found.text
    text = load_text(corpus, contents)
    documents = text.documents
    if not options.words:
        documents = split_validation(documents, share=corpus.validation_share)["train"]
    return search_documents(documents, query, folder=run.root / _PARTS, num_proc=run.num_proc), text.facts


def _facts(options: ContextsOptions, query: ContextQuery, found: Found, report: ContextsReport) -> dict[str, Any]:
    """Return the facts for the record."""
    left_out = select_tokens(read_words(options.words), query.tokenizer).unusable if options.words else {}
    return {
        "engine": options.engine,
        "sentences": found.counts.sentences,
        "occurrences": found.counts.occurrences,
        "tokens": len(report.contexts),
        "contexts": len(found.contexts),
        "digest": digest_of_rows(found.contexts),
        **report.facts(),
        "merged_tokens": query.selection.merged,
        "left_out": left_out,
    }


def _log(facts: dict[str, Any], report: ContextsReport, per_token: int, record: Path) -> None:
    """Log the main numbers of the result."""
    logger.info(
        "%(contexts)d contexts of %(tokens)d tokens, which occur %(occurrences)d times: %(found_as_words)d found as "
        "words, %(found_inside_words)d only inside words, %(not_found)d not found",
        facts,
    )
    if report.not_found:
        some = ", ".join(report.not_found[:10]) + (", ..." if report.not_found[10:] else "")
        logger.info("not found: %s (%s lists all of them, and the tokens with few contexts)", some, record)
    logger.info("tokens by number of contexts: %s", report.coverage_in_words(per_token))


def _new_tokens(base_model: str, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the tokens that the base model doesn't have."""
    return list(compare_vocabularies(load_by_name(AutoTokenizer, base_model), tokenizer).new)


def _find_words(options: ContextsOptions, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Read the words that can be found, and raise for or skip those that can't."""
    words = read_words(options.words)
    unusable = select_tokens(words, tokenizer).unusable
    if unusable and not options.skip_unusable:
        word, reason = next(iter(unusable.items()))
        raise InputError(
            f"{options.words}: {len(unusable)} of {len(words)} words can never be found, for example {word!r} "
            f"({reason}): remove them, or use skip_unusable",
            argument="words",
        )
    for word, reason in unusable.items():
        logger.warning("skipped %r: %s", word, reason)
    return [word for word in words if word not in unusable]


def read_words(path: str | Path | None) -> list[str]:
    """Read one word per line, and skip empty lines.

    Raises:
        InputError: the file can't be read, isn't UTF-8, or contains no words.
    """
    try:
        content = Path(str(path)).read_bytes()
        if b"\0" in content:
            raise InputError(f"{path} has NUL bytes, as in UTF-16: convert it to UTF-8", argument="words")
        lines = content.decode("utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}", argument="words") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not valid UTF-8 at byte {error.start}: convert or repair it", argument="words"
        ) from error
    words = [word for line in lines if (word := line.strip())]
    if not words:
        raise InputError(f"{path} contains no words", argument="words")
    return words
