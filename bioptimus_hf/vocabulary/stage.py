"""Make the tokenizer of a run: train or extend a vocabulary, and report how it splits held-out text."""

from __future__ import annotations

import logging
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.artifacts import Run, building, is_finished, write_json
from bioptimus_hf.corpus.dataset import contents_of, load_text, split_validation
from bioptimus_hf.corpus.options import Corpus
from bioptimus_hf.models import check_base, find_model, load_by_name, save_tokenizer
from bioptimus_hf.vocabulary.fertility import report_vocabulary
from bioptimus_hf.vocabulary.options import VocabularyOptions
from bioptimus_hf.vocabulary.tokenizer import added_tokens, build_tokenizer, compare_vocabularies, warn_if_cased
from bioptimus_hf.vocabulary.training import extend_vocabulary, train_vocabulary

logger = logging.getLogger(__name__)


@check_call()
def make_tokenizer(run: Run, corpus: Corpus, options: VocabularyOptions) -> Path:
    """Train or extend a vocabulary, and save the tokenizer with a report. Does nothing if that was done before.

    Args:
        run: folder of the run.
        corpus: text to train on, and the share of it that is held out for the report.
        options: base model, size and policy.

    Returns:
        The folder `tokenizer` of the run: a tokenizer that `AutoTokenizer` loads, with `vocab.txt`, `made.json`, and a
        report on held-out text (`report.md`, `report.json`, `fertility.png`).

    Raises:
        InputError: the corpus or the base model can't be read, the base isn't a BERT with tied embeddings, `size` is
            too small, no words are held out, or the folder holds a tokenizer made from other inputs or settings and
            `run.force` is false.
    """
    with run.working_on("tokenizer") as folder:
        _make(folder, run, corpus, options)
    return folder


def _make(folder: Path, run: Run, corpus: Corpus, options: VocabularyOptions) -> None:
    contents = contents_of(corpus.corpus)  # first: a misspelt file needs no download of the model
    base_model = find_model(options.base_model)
    inputs = {"corpus": contents.identity, "base_model": base_model.identity}
    settings = {
        **corpus.settings(),
        "size": options.size,
        "policy": options.policy,
        "min_frequency": options.min_frequency,
    }
    if is_finished(folder, inputs, settings, force=run.force):
        return
    positions = check_base(base_model.folder).max_position_embeddings
    base = load_by_name(AutoTokenizer, base_model.folder)
    base.model_max_length = min(base.model_max_length, positions)  # many tokenizers on the Hub state no limit
    warn_if_cased(base, options.base_model)
    with building(folder, inputs, settings) as stage:
        text = load_text(corpus, contents)
        splits = split_validation(text.documents, share=corpus.validation_share)
        train = train_vocabulary if options.policy == "replace" else extend_vocabulary
        vocabulary = train(splits["train"]["text"], size=options.size, like=base, min_frequency=options.min_frequency)
        tokenizer = build_tokenizer(vocabulary, like=base)
        _warn_about_dropped(base, tokenizer)
        save_tokenizer(tokenizer, stage.path)
        difference = compare_vocabularies(base, tokenizer)
        report = report_vocabulary(vocabulary, splits["validation"]["text"], like=base)
        (stage.path / "report.md").write_text(report.markdown(), encoding="utf-8")
        write_json(stage.path / "report.json", report.facts())
        report.plot(stage.path / "fertility.png")
        stage.facts |= {
            "text": text.facts,
            # Where later stages find the model. The identity in the inputs only says what it contains.
            "base_model": base_model.commit or str(Path(base_model.folder).resolve()),
            "tokens": len(tokenizer),
            "shared": len(difference.shared),
            "new": len(difference.new),
            "dropped": len(difference.dropped),
            "fertility_before": report.base.fertility,
            "fertility_after": report.by_size[len(tokenizer)].fertility,
        }
    if stage.facts["fertility_after"] > stage.facts["fertility_before"]:
        logger.warning(
            "with the new vocabulary, held-out text is longer than with that of the base: %(fertility_after).3f pieces "
            "per word instead of %(fertility_before).3f. The corpus is too small to learn a vocabulary from: use more "
            "text, or keep the vocabulary of the base and extend it (policy)",
            stage.facts,
        )
    logger.info(
        "%(tokens)d tokens, %(new)d of them new; pieces per word: %(fertility_before).3f before, "
        "%(fertility_after).3f after",
        stage.facts,
    )


def _warn_about_dropped(base: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase) -> None:
    kept = {token.content for token in added_tokens(tokenizer)}
    dropped = [token.content for token in added_tokens(base) if token.content not in kept]
    if dropped:
        logger.warning(
            "%d tokens that were added to the base aren't in the new vocabulary (%s%s): extend the vocabulary to keep "
            "them (policy)",
            *(len(dropped), ", ".join(dropped[:3]), ", ..." if dropped[3:] else ""),
        )
