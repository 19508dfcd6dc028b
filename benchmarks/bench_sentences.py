#!/usr/bin/env python
"""Compare sentence splitters on biomedical text: speed, and boundaries in gold sentences and hard cases.

    pip install -e '.[bench]'
    python benchmarks/bench_sentences.py --corpus DATA/corpus --ner DATA/ner

Prints for each splitter

- MB of UTF-8 text per CPU second on the first 10 MB of abstracts and 5 MB of full text, the median of three rounds;
  ours is measured as it runs on a corpus, with `split_sentences`, and then, like the others, text by text;
- precision, recall and F1 of the boundaries inside documents made of gold sentences (the dev and test splits of the NER
  sets, detokenised), and how many of its errors split a sentence and how many merge two;
- how many of the hard cases below are entirely right;
- whether its segments contain every character of the text.

Weaknesses of the gold text: rules restore the spacing from tokens, so abbreviations and full stops inside names are a
guess ("PU.1" or "PU. 1"). BC2GM consists of single sentences that have nothing to do with their neighbours.
NCBI-disease was itself split by a program, at many decimal points (repaired here) and occasionally elsewhere. A
sentence that ends without a full stop can't be found in running text, so a document ends there. All texts are titles
and abstracts.
"""

from __future__ import annotations

import argparse
import gzip
import re
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import blingfire
import sentencex
from datasets import Dataset, disable_progress_bars

from bioptimus_hf.corpus.sentences import sentences_of, split_sentences

Splitter = Callable[[str], Sequence[str]]

NER_SETS = ("NCBI-disease", "BC5-chem", "BC2GM", "JNLPBA")  # BC5-disease has the sentences of BC5-chem
SENTENCES_PER_DOCUMENT = 10
ROUNDS = 3

# A bar marks the boundary between two sentences.
HARD_CASES: dict[str, tuple[str, ...]] = {
    "abbreviations": (
        "Several kinases, e.g. ERK and JNK, were active.",
        "Inhibitors of one pathway (e.g., MEK inhibitors) had no effect. |Controls were unchanged.",
        "The smaller isoform, i.e. the secreted one, was lost.",
        "Bands are shown in Fig. 2 and Figs. 4 to 6. |Lanes were loaded equally.",
        "As reported by Okafor et al. the clone grows slowly.",
        "Okafor et al. (2011) found the same. |We disagree.",
        "The model of Okafor et al. Nature Genet. 3, 235-241 was used.",
        "Survival was longer with drug vs. placebo. |It was not longer with surgery.",
        "Ratios were computed (cf. Table 2), then averaged.",
        "Tumours of approx. 3 mm were removed.",
        "Cells (ca. 10 000 per well) were plated.",
        "Liver, spleen, lung, etc. were weighed.",
        "We removed liver, spleen, lung, etc. |All organs were weighed.",
        "Rates follow Eq. 3 and Ref. 7. |Errors are in Suppl. Table 2.",
        "Births from Jan. 1 to Dec. 31 were counted.",
        "Reagents came from Nordlab Inc. and Sudlab Ltd. in Basel.",
        "Antibody No. 3 bound best. |Nos. 4 and 5 did not bind.",
        "Means ± S.D. are given. |Medians are not.",
    ),
    "doses and units": (
        "Rats received saline i.v. or i.p. for a week. |They were then weighed.",
        "All received i.v. Ringer lactate before surgery.",
        "Mice were given 5 mg/kg i.p. |Controls received saline.",
        "One tablet was taken b.i.d. for six weeks. |Pills were counted.",
        "Incubation lasted 30 min. |Cells were then fixed.",
        "Doses of 5 mg. per kg. body weight were toxic.",
        "Lysates were spun at 12,000 r.p.m. for 5 min.",
        "Vitamin D (400 I.U. daily) was given for one year.",
        "Blood was drawn at 8 a.m. and 6 p.m. on two days.",
        "Blood was drawn at 8 a.m. |Plasma was frozen.",
        "Isolates were grown at 37 °C. |They formed capsules.",
    ),
    "people and places": (
        "We thank Dr. Ines Brandt for the plasmid.",
        "Slides were read by Prof. H. Lind and Dr. K. Ono. |Readings agreed.",
        "J. R. Adler and M. Stone read the slides. |They agreed.",
        "Patients came from St. John Hospital and from Mt. Carmel. |All gave consent.",
        "Incidence in the U.S. has doubled since 1990.",
        "The U.S. Department of Health paid for the study.",
        "Cases were rare in the U.K. |Rates rose after 2005.",
    ),
    "species": (
        "Expression in E. coli was low. |Yeast gave more protein.",
        "Biofilms contained mainly E. coli. |S. aureus was rare.",
        "C. elegans lacks the gene. |D. melanogaster has two copies.",
        "Two isolates, a Bacillus sp. and a Nocardia spp. mixture, grew slowly.",
        "Isolates of S. enterica subsp. enterica ser. Typhi were typed.",
        "Crocus sativus L. extract was given.",
    ),
    "numbers and names": (
        "Differences were significant at p < 0.05. |Larger ones were not seen.",
        "The odds fell by half (P = .03). |No other term mattered.",
        "Risk was higher in smokers (OR 1.8, 95% CI 1.2-2.7; P=.004), but not in others.",
        "Values below .05 were ignored.",
        "The buffer was kept at pH 7.4. |The flow was 2.5 ml/min.",
        "The protein has a mass of 45.2 kDa. |Its pI is 6.1.",
        "The gene lies on 19q13.3. |It has nine exons.",
        "Enzyme EC 3.4.21.4 cuts after lysine. |PU.1 binds DNA.",
        "Release 4.2.1 of the program was used.",
        "The placebo arm was group B. |Group A received the drug.",
        "Most had been cured of hepatitis C. |Relapses were rare.",
        "Titres reached 10(6). |They fell later.",
        "Data are at www.example.org and can be had from lab@example.org. |Access is free.",
    ),
    "unusual beginnings": (
        "The signal vanished. |p38 was still active.",
        "Levels of the protein rose. |mRNA did not change.",
        "Follow-up ended in June. |12 patients were lost.",
        "All were treated. |5-Fluorouracil was added later.",
        "Binding was weak. |β-Catenin was not needed.",
        "Growth was reduced in all rats. |(ABSTRACT TRUNCATED AT 250 WORDS)",
        "Calcium entered. |[3H]Thymidine uptake rose.",
    ),
    "lists and headings": (
        "We asked (i) who falls ill, (ii) who recovers, and (iii) who relapses. |Few answers were found.",
        "(iii) The dose was doubled. |Twelve patients had a relapse. |None died.",
        "(1) Binding needs zinc. |(2) Release needs calcium. |(3) Neither needs ATP.",
        "1. Noradrenaline raised the tension. |2. Atropine had no effect.",
        "BACKGROUND: Asthma is common. |METHODS: We followed 310 children. |RESULTS: Half improved.",
        "OBJECTIVE: To test whether zinc helps. |DESIGN: Randomised trial. |SETTING: Two clinics.",
        "Groups were young (n = 12) A carriers and old (n = 15) B carriers. |Both did well.",
    ),
    "citations": (
        "The drug kills resting cells.12 |The mechanism is unknown.",
        "Similar values were found before.3,4 |We repeat the test here.",
        "Loss of the gene is lethal [12]. |Heterozygotes live.",
        "Loss of the gene is lethal.[12] |Heterozygotes live.",
    ),
    "other marks": (
        "Does zinc shorten a cold? |Trials disagree.",
        "Was it safe? |No. |Four rats died.",
        "Ten patients died; two recovered; one was lost. |Nobody withdrew.",
        "Symptoms came, went ... and came again.",
        "The repeat (CAG...CAG) was stable. |Its length varied.",
        'Patients called it "a dull pain." |Nurses agreed.',
        "One wrote: “No effect.” |We found one.",
        "(All tests were two-sided.) |Power was 90%.",
        "Weight was stable. |(Data not shown.) |Height was not measured.",
        "Mutants [e.g. R273H] were unstable. |The wild type was stable.",
        "Cells were lysed.|Then they were spun.",
    ),
}

# A full stop after one of these is followed by a space, unlike that of a name ("PU.1").
_ABBREVIATIONS = (
    "acad al approx biol blood cancer ca cell cf chem cl clin dev dr ed environ eq etc exp fig figs genet inc int jr "
    "ltd med mol mt mutagen nat natl nature no nos nov nt pharmacol pp proc prof pv ref refs res resp sci ser sp spp "
    "st sub subsp suppl u var viz vol vs"
)
_SPACED = frozenset(_ABBREVIATIONS.split())
_UNIT_NAMES = "cm d day g h hr kg l m mg microg micrograms min ml mmol ng s sec"
_UNITS = frozenset(_UNIT_NAMES.split())
_BEFORE_DECIMALS = frozenset(("=", "<", ">", "-", "than", "and", "of", "or", "to", "from"))
_SHORT_WORDS = "and or the in of to for with that are is by from as at a on all was per vs day age but not"
_NO_STEM = frozenset(_SHORT_WORDS.split())
_ENDS = re.compile(r"[.?!][\"')\]”’]*$")


class Scores(NamedTuple):
    """Numbers of right, wrong and missed boundaries."""

    right: int
    wrong: int
    missed: int

    def __str__(self) -> str:
        precision = self.right / max(self.right + self.wrong, 1)
        recall = self.right / max(self.right + self.missed, 1)
        f1 = 2 * precision * recall / max(precision + recall, 1e-9)
        return f"{100 * precision:.2f} {100 * recall:.2f} {100 * f1:.2f}"


# A splitter takes a text and returns its sentences in order. Only white space may lie between them.


def ours() -> Splitter:
    """Return the splitter behind `split_sentences`: sentencex on a masked copy, a second time for long segments."""
    return lambda text: list(sentences_of(text))


def plain_sentencex() -> Splitter:
    """Return sentencex on the text itself."""
    return lambda text: list(sentencex.segment("en", text))


def finite_state() -> Splitter:
    """Return blingfire, a finite-state machine by Microsoft."""
    return lambda text: [text[start:end] for start, end in blingfire.text_to_sentences_and_offsets(text)[1]]


SPLITTERS: dict[str, Callable[[], Splitter]] = {
    "bioptimus_hf": ours,
    "sentencex": plain_sentencex,
    "blingfire": finite_state,
}


def ner_sentences(path: Path) -> Iterator[list[str]]:
    """Yield the sentences of a file with one token per line, as lists of tokens."""
    tokens: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            tokens.append(line.split("\t")[0])
        elif tokens:
            yield tokens
            tokens = []
    if tokens:
        yield tokens


def detokenise(tokens: Sequence[str]) -> str:
    """Restore the spacing of a sentence: "P", "<", ".", "05" becomes "P < .05"."""
    words: list[str] = []
    quoted = False
    glue = True  # no space before the next token
    bracket_end = 0  # end of a bracket that belongs to the word before it and is written without spaces
    for position, token in enumerate(tokens):
        before = tokens[position - 1] if position else ""
        after = tokens[position + 1] if position + 1 < len(tokens) else ""
        space, glue_after = True, False
        if token in ("``", "''", '"'):
            quoted = token == "``" or (token == '"' and not quoted)
            space, glue_after = quoted, quoted
            token = '"'
        elif token == ".":
            if before == "." and not after:  # ". ." at the end stands for a single full stop
                continue
            is_decimal = after[:1].isdigit() and before in _BEFORE_DECIMALS
            space = is_decimal or before == "." or not position
            chained = len(words) > 1 and words[-2] == "." and not words[-1].startswith(" ")  # "i.c.v"
            ends_chain = tokens[position + 2 : position + 3] == ["."] or chained
            glue_after = _full_stop_glues(before, after, ends_chain)
        elif token in ("(", "[", "{"):
            if position >= bracket_end:
                bracket_end = _end_of_word_bracket(tokens, position)
            space, glue_after = position >= bracket_end, True
        else:
            space, glue_after = _spacing(token, before, after, tokens[max(position - 2, 0)])
        words.append((" " if space and not glue else "") + token)
        glue = glue_after or position < bracket_end - 1
    return "".join(words).strip()


def _spacing(token: str, before: str, after: str, second_before: str) -> tuple[bool, bool]:
    """Return whether a space precedes a token, and whether the next token follows without one."""
    if token == "," and before[-1:].isdigit() and re.fullmatch(r"\d{3}", after):
        return False, True  # "12,000"
    if token in (",", ";", ":", "?", "!", ")", "]", "}", "%", "'"):
        return False, token == "'" and after in ("s", "-")
    if token == "/" or (token == "-" and before and before not in (",", ";")):
        return False, before != "/" or second_before != "+"  # "+/-" is followed by a space
    return not (token.startswith("-") or token == "'s"), False


def _end_of_word_bracket(tokens: Sequence[str], start: int) -> int:
    """Return the end of a bracket that is written without a space, as in "GABA(A)" or "10(-7)"; 0 for any other."""
    before = tokens[start - 1] if start else " "
    if before in _NO_STEM or not before[-1].isalnum() or (before.islower() and len(before) > 3):
        return 0
    for position in range(start + 1, min(start + 8, len(tokens))):
        token = tokens[position]
        if token in (")", "]"):
            return position + 1 if position > start + 1 else 0
        if not (token in "+-,;'/." or token.isdigit() or len(token) == 1 or token in ("ii", "iii", "IIb", "2A")):
            return 0
    return 0


def _full_stop_glues(before: str, after: str, ends_chain: bool) -> bool:
    """Return whether a full stop inside a sentence is followed by the next token without a space."""
    if not before or not after or before == "." or after[0] in ".([":
        return False
    if before in _BEFORE_DECIMALS and after[0].isdigit():
        return True  # ".05"
    if (before[-1].isdigit() and (after[0].isdigit() or after in _UNITS)) or {before, after} <= _UNITS:
        return True  # "0.05", "mg.kg-1.min-1"
    if len(before) == 1 and len(after) == 1 and after.isalpha() and ends_chain:
        return before.islower() == after.islower()  # "i.v.", "U.S."
    if before in "cgp" and after[-1].isalnum() and any(letter.isdigit() for letter in after):
        return True  # "p.Asp70Gly"
    is_word = len(before) == 1 or before.islower() or before.lower() in _SPACED
    is_word = is_word or (before.istitle() and after.isdigit())
    return not is_word and before[-1].isalnum() and after[0].isalnum()  # "PU.1"


def gold_documents(folder: Path, sets: Iterable[str] = NER_SETS) -> Iterator[tuple[str, frozenset[int]]]:
    """Yield documents and their boundaries, as the number of characters before them without white space."""
    for name in sets:
        for split in ("dev", "test"):
            document: list[str] = []
            for tokens in _repaired(ner_sentences(folder / name / f"{split}.tsv")):
                sentence = detokenise(tokens)
                document.append(sentence)
                if len(document) == SENTENCES_PER_DOCUMENT or not _ENDS.search(sentence):
                    yield " ".join(document), frozenset(boundaries(document))
                    document = []
            if document:
                yield " ".join(document), frozenset(boundaries(document))


def _repaired(sentences: Iterable[list[str]]) -> Iterator[list[str]]:
    """Yield the sentences, joined where they were split at a decimal point, and without PubMed's note on truncation."""
    held: list[str] = []
    for tokens in sentences:
        if "TRUNCATED" in tokens:  # "( ABSTRACT TRUNCATED AT 250 WORDS )"
            tokens = tokens[: tokens.index("TRUNCATED") - 2]
            if not tokens:
                continue
        if held and len(held) > 1 and held[-1] == "." and held[-2][-1].isdigit() and tokens[0].isdigit():
            held = held + tokens
            continue
        if held:
            yield held
        held = tokens
    if held:
        yield held


def boundaries(segments: Sequence[str]) -> list[int]:
    """Return the boundaries of segments, as the number of characters before them without white space."""
    found: list[int] = []
    count = 0
    for segment in segments:
        length = len("".join(segment.split()))
        if length and count:
            found.append(count)
        count += length
    return found


def score(split: Splitter, documents: Iterable[tuple[str, frozenset[int]]]) -> Scores:
    """Compare the boundaries that a splitter finds with the gold boundaries."""
    right = wrong = missed = 0
    for text, gold in documents:
        found = set(boundaries(split(text)))
        right += len(found & gold)
        wrong += len(found - gold)
        missed += len(gold - found)
    return Scores(right, wrong, missed)


def hard_case_is_right(split: Splitter, case: str) -> bool:
    """Return whether a splitter finds the boundaries of a hard case and no others."""
    return boundaries(split(case.replace("|", ""))) == boundaries(case.split("|"))


def keeps_text(split: Splitter, texts: Iterable[str]) -> bool:
    """Return whether the segments contain every character of the texts, in order, except white space."""
    return all("".join("".join(split(text)).split()) == "".join(text.split()) for text in texts)


def speed(split: Callable[[], object], texts: Sequence[str]) -> float:
    """Return the median speed in MB of UTF-8 per CPU second at which all texts are split."""
    size = sum(len(text.encode()) for text in texts) / 1e6
    seconds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        split()
        seconds.append(time.process_time() - start)
    return size / statistics.median(seconds)


def speeds(name: str, split: Splitter, texts: Sequence[str]) -> str:
    """Return the speed of a splitter; of ours, on a data set and then text by text."""
    one_by_one = speed(lambda: deque(map(split, texts), maxlen=0), texts)
    if name != "bioptimus_hf":
        return f"{one_by_one:.1f}"
    documents = Dataset.from_dict({"text": texts})  # in memory, so that nothing is kept in the cache
    return f"{speed(lambda: split_sentences(documents), texts):.1f}; {one_by_one:.1f}"


def sample(paths: Iterable[Path], megabytes: float) -> list[str]:
    """Return the first documents of several files, one of each in turn, up to a total size."""
    texts: list[str] = []
    size = 0.0
    with ExitStack() as stack:
        files = [stack.enter_context(gzip.open(path, "rt", encoding="utf-8")) for path in paths]
        for line in chain.from_iterable(zip(*files, strict=False)):
            size += len(line.encode()) / 1e6
            if size > megabytes:
                break
            texts.append(line.rstrip("\n"))
    return texts


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="folder with abstracts.txt.gz and fulltext_*.txt.gz")
    parser.add_argument("--ner", type=Path, required=True, help="folder with the NER sets")
    parser.add_argument("--splitters", nargs="+", choices=SPLITTERS, default=list(SPLITTERS))
    parser.add_argument("--misses", action="store_true", help="also print the hard cases that aren't right")
    return parser.parse_args()


def main() -> None:
    """Measure each splitter and print the table."""
    options = parse_options()
    disable_progress_bars()
    abstracts = sample([options.corpus / "abstracts.txt.gz"], 10)
    fulltexts = sample(sorted(options.corpus.glob("fulltext_*.txt.gz")), 5)
    documents = list(gold_documents(options.ner))
    cases = [case for group in HARD_CASES.values() for case in group]
    found = sum(len(gold) for _, gold in documents)
    print(f"{len(documents)} gold documents, {found} boundaries; {len(cases)} hard cases")
    print("| splitter | MB/s abstracts | MB/s full text | P R F1 | split, merged | hard cases | keeps the text |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in options.splitters:
        split = SPLITTERS[name]()
        scores = score(split, documents)
        failed = [case for case in cases if not hard_case_is_right(split, case)]
        kept = keeps_text(split, islice((text for text, _ in documents), 1000)) and keeps_text(split, fulltexts)
        rates = f"{speeds(name, split, abstracts)} | {speeds(name, split, fulltexts)}"
        errors = f"{scores.wrong}, {scores.missed}"
        right = len(cases) - len(failed)
        print(f"| {name} | {rates} | {scores} | {errors} | {right} of {len(cases)} | {'yes' if kept else 'NO'} |")
        for case in failed if options.misses else ():
            print(f"    {' | '.join(segment.strip() for segment in split(case.replace('|', '')))}")


if __name__ == "__main__":
    main()
