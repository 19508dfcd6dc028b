"""Test the rules for sentences of biomedical text, on short texts of our own."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
import sentencex
from hypothesis import given, settings
from hypothesis import strategies as st

from bioptimus_hf.corpus.sentence_rules import _CANDIDATE, _ENDINGS, corrected, stops_of_texts
from bioptimus_hf.corpus.sentences import sentence_starts, sentences_of

# A bar marks the boundary between two sentences.
TEXTS = {
    "taxonomy": (
        "Leaves were infected with Pseudomonas syringae pv. tomato. |They wilted.",
        "Strains of Rhizobium leguminosarum bv. viciae were sequenced.",
        "Salmonella enterica subsp. enterica ser. Dublin was found. |It was rare.",
        "Listeria spp. were absent. |Salmonella spp. |The other samples were clean.",
        "Extracts of Aloe vera var. chinensis and of Hordeum vulgare ssp. spontaneum were tested.",
        "Fusarium oxysporum f. sp. cubense race 4 spreads. |Bananas die.",
        "We describe Vibrio alpha sp. nov. and its host. |Both are marine.",
        "E. coli grew. |S. aureus did not. |B. subtilis was not tested.",
        "Patients were infected with S. Typhimurium or S. Enteritidis. |All recovered.",
        "St. louis encephalitis virus was isolated. |West Nile virus was not.",
        "Kiwi cv. Hayward was stored (n = 5). |Apples cv. 'Gala' were not.",
    ),
    "units and quantities": (
        "Tubes were kept at 37 deg. for an hour. |They were then opened.",
        "Tubes were kept at 37 deg. C for an hour.",
        "Samples stood at room temp. for 3 days. |Temp. was logged.",
        "A final conc. of 5 mM was used. |Lower conc. |The rest is the same.",
        "About 5 ml. of water was added. |Rats drank it.",
        "The protein has a mol. wt. of 45 000. |It is basic.",
        "The dose was max. 5 mg per day, for min. 3 days.",
        "Cells were fixed for 30 min. Washing followed.".replace(". W", ". |W"),
        "Blood was drawn at 0, 4 and 24 h. |Plasma was frozen.",
        "Rats weighed 150-200 g. |Mice weighed 20 g. |Both were male.",
        "Infusion ran at 5 ml/min. |Pressure fell.",
        "Doses of 10 mg. per kg. body weight were toxic. |Lower ones were not.",
        "The samples were kept at 4 C. |Buffers were kept at 20 C.",
        "Follow-up was 5 yrs. |Twelve patients died.",
        "Follow-up was 5 yrs. |12 patients died.",
        "Approx. 30 rats and approx. ten mice were used.",
    ),
    "letters that end a sentence": (
        "The enzyme was phosphorylated by protein kinase A. |Mutants were inactive.",
        "Scurvy is caused by a lack of vitamin C. |Fruit prevents it.",
        "Donors were screened for hepatitis B. |Carriers were excluded.",
        "The defect lies in factor X. |Bleeding is mild.",
        "The drug was given to group A. |Patients in group B had none.",
        "Allocation was to groups A and B. |Patients didn't know which.",
        "It was cut with DNase I. |Fragments were blotted.",
        "Controls got placebo. |Group B. |The drug was given twice.",
        "Slides were read by Prof. H. Lind and by J. B. Adler. |They agreed.",
        "The method of W. Osler was used. |It is old.",
        "Nicholas J. Smith and John F. Kennedy had it.",
        "Results were analysed in R. |The code is available.",
        "Vitamin D. |Its receptor is nuclear.",
    ),
    "abbreviations that may end a sentence": (
        "The drug was given i.v. |Doses were doubled after a week.",
        "All received i.v. Ringer lactate and 5 mg i.m. |Controls received saline.",
        "Mice were treated with 5 mg/kg i.p. |Survival was recorded.",
        "One tablet was taken b.i.d. |Pills were counted.",
        "The drug was given p.o. or s.c. at 8 a.m. |Food was withheld.",
        "Rates in the U.S. are rising. |Rates in the U.K. |They are not.",
        "Rates fell in the U.K. |Patients were older there.",
        "The U.S. Department of Agriculture paid. |We thank it.",
        "Liver, spleen, kidney, etc. |Tissues were weighed.",
        "Inhibitors, i.e. Tyrphostins, e.g. AG 490, had no effect. |Others had.",
        "As reported by Okafor et al. (2011), e.g. in Fig. 2. |We disagree.",
    ),
    "references": (
        "See Sect. 3 and Sects. 4 to 6. |They are short.",
        "Bands are shown in Figs. 4 and 5. |Lanes are equal.",
        "It follows from Eqs. 3 to 5 and Refs. 7 and 8. |Errors are in Suppl. Table 2.",
        "See vol. 3, pp. 5-6 and ch. 4 of the book. |It is good.",
        "The rate was higher (cf. Table 3), viz. 5 %. |It fell.",
        "Nature Genet. 3, 235-241 and Mol. Cell. Biol. 15, 1858-1869 report it. |We agree.",
    ),
    "citation numbers": (
        "The same had been seen before.12 |We repeat it here.",
        "The same had been seen before.1,2 |The cause is unknown.",
        "The same had been seen before.3-5 |The cause is unknown.",
        "The same had been seen before.3, 4 |Others disagree.",
        "The same had been seen before.¹² |We repeat it here.",
        "The same had been seen before.[12] |We repeat it here.",
        "The same had been seen before.[3,4] |We repeat it here.",
        "The same had been seen before.[3-5] |We repeat it here.",
        "The same had been seen before.(12) |We repeat it here.",
        "The same had been seen before (12). |We repeat it here.",
        "The cells (n = 5).7 |We repeat it here.",
        "Contraction was weak at.8 Hz and was.5 N at most.",
    ),
    "inside names and numbers": (
        "Ca(2+).Mg(2+) ATPase was blocked. |Na+ was not needed.",
        "The Shc.GRB2.Sos complex binds Ras.GTP. |Kinases follow.",
        "The enzyme (EC 3.1.1.1) is stable at pH 7.4. |EC 2.7.11.1 is not.",
        "The difference was small (p < .05). |It grew later.",
        "Cells were lysed.|Then they were spun.",
        "The gene PU.1 binds at p.Val204Asp. |Others do not.",
    ),
    "marks": (
        "Weight was stable. |(Data not shown.) |Height was not measured.",
        "Mutants [e.g. R273H] were unstable. |Others (wild type etc.) were not.",
        "Does it help? |No! |It harms.",
        'He called it "a dull pain." |Nurses agreed.',
        "1. Noradrenaline raised the tension. |2. Atropine had no effect. |3. Both are old.",
        "Symptoms came ... and went. |They came again.",
        "Release 4.2.1 was used. |It is free.",
    ),
}


@pytest.mark.parametrize("marked", [text for texts in TEXTS.values() for text in texts])
def test_boundaries(marked: str) -> None:
    text = marked.replace("|", "")
    expected = [sentence.strip() for sentence in marked.split("|")]
    assert list(sentences_of(text)) == expected
    starts = sentence_starts(text)
    pieces = [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]
    assert "".join(pieces) == text
    assert [piece.strip() for piece in pieces] == expected


def test_there_are_enough_texts() -> None:
    assert sum(map(len, TEXTS.values())) > 60


@pytest.mark.parametrize("blank", ["  ", "\n", " \n ", "\t", "\f", "\v", "\x1c", "\x85", "\u2028", "\u2029", "\u00a0"])
@pytest.mark.parametrize(
    ("first", "second"),
    [("By protein kinase A.", "Mutants were inactive."), ("We gave it i.v.", "Doses were doubled.")],
)
def test_any_whitespace_lies_between_sentences(first: str, second: str, blank: str) -> None:
    assert list(sentences_of(first + blank + second)) == [first, second]


@pytest.mark.parametrize("blank", ["  ", "\n", " \n ", "\t", "\f", "\v", "\x1c", "\x85", "\u2028", "\u2029", "\u00a0"])
def test_any_whitespace_follows_an_abbreviation(blank: str) -> None:
    text = f"It was isolated from pv.{blank}tomato, subsp.{blank}alba and approx.{blank}3 spp.{blank}of moss."
    assert len(list(sentences_of(text))) == 1


# Short pieces, so that every class of characters is met on either side of a full stop.
_PIECES = [*" \n.aAbZ09()]/[=é,", ". ", ".A", ".1", ". a", " A.", *(f"{ending}. " for ending in _ENDINGS.split("|"))]
_TEXTS = st.lists(st.lists(st.sampled_from(_PIECES), min_size=1, max_size=15).map("".join), min_size=1, max_size=5)


@settings(max_examples=300, deadline=None)
@given(_TEXTS)
def test_the_same_full_stops_are_found_in_many_texts_at_once(texts: list[str]) -> None:
    ends_of_texts = [list(accumulate(map(len, sentencex.segment("en", text)))) for text in texts]
    sizes = [len(text.encode()) for text in texts]
    ends = [
        start + len(text[:end].encode())
        for start, text, own in zip(accumulate(sizes, initial=0), texts, ends_of_texts, strict=False)
        for end in own
    ]
    found = stops_of_texts("".join(texts).encode(), np.array(ends), np.cumsum(sizes))
    for number, (text, own) in enumerate(zip(texts, ends_of_texts, strict=True)):
        if text.isascii():
            missed = {match.start() for match in _CANDIDATE.finditer(text)} - set(found.get(number, ()))
            for stop in missed:  # before a lower-case letter or a number, where no sentence ends
                assert text[stop + 1] in " \n"
                assert text[stop + 2] in "abvhrcpsumiegtvonldxz09/"
                assert not {stop + 1, stop + 2} & set(own)
            assert corrected(text, own, found.get(number, [])) == corrected(text, own)
