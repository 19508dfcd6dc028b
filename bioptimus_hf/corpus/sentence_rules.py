"""Correct the sentence boundaries of a general splitter in biomedical text, with lists of abbreviations and rules.

sentencex knows the abbreviations of general English ("Dr.", "Fig.", "et al."). It doesn't know those of taxonomy, of
units and of laboratories, and it takes every "A." for the initial of a name and every ".1" for a decimal.

The lists were collected from 49 MB of abstracts and full text (words before a full stop and a lower-case letter or a
digit), the International Code of Nomenclature of Prokaryotes (ranks), the units of the SI and the Latin abbreviations
of prescriptions. To be listed, an abbreviation must not be a common English word.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from string import ascii_letters, ascii_lowercase, ascii_uppercase, digits

import numpy as np
import numpy.typing as npt

from bioptimus_hf.corpus.whitespace import ASCII_SEPARATORS

Offsets = npt.NDArray[np.int64]


def _words(words: str) -> frozenset[str]:
    return frozenset(words.split())


# What an abbreviation stands for goes on after it: it ends no sentence, unless "The" or the like follows.
_NEVER_LAST = _words(
    # ranks below the species, before an epithet or a name: "Xanthomonas campestris pv. campestris"
    "cv subsp ssp subspp pv pvs bv ser serov sv bvar var morphovar chemovar "
    # references, before a number or a title: "Figs. 4 to 6", "Suppl. Table 2"
    "figs ref refs eq eqs eqn eqns suppl supp sect sects chap chaps tab tabs ch nos vols chr chrs "
    # Latin and comparisons: "approx. 3 mm"
    "approx viz cf ca incl esp"
)

# These may end a sentence, but not before a lower-case letter or a number. In title case ("Temp. was 37") they begin a
# name or a heading, and never end a sentence.
_RARELY_LAST = _words(
    # taxonomy: "a Nocardia sp. strain", "sp. nov. isolated"
    "sp nov gen fam ord comb "
    # quantities: "at room temp. for 3 h", "mol. wt. 45 000", "max. 5 days"
    "temp conc concn soln sol vol wt mol deg diam dia avg av std stand ht max min resp expt est calc calcd obs "
    # publications: "vol. 3, pp. 5"
    "vol ed eds trans cit pp pt pts art arts transl unpubl"
)

# Before a lower-case letter only: a new sentence may well begin with a number.
_BEFORE_LOWER = _words("spp iv ip sc im po id bid tid qid prn inj tabl")

# Units: "5 mg. per kg. body weight" goes on, "for 30 min. Cells were fixed" doesn't.
_UNITS = _words(
    "kg g mg ug µg μg mcg ng pg microg microgram micrograms gm gms mol mmol umol µmol μmol nmol pmol m cm mm um µm μm "
    "nm km l dl ml ul µl μl cc h hr hrs min mins s sec secs ms d wk wks mo mos y yr yrs kb bp kd kda mv hz "
    "C J K N V W A T M L Gy Hz"
)

# Words of abbreviated journal names: "Mol. Cell. Biol. 15, 1858-1869".
_JOURNALS = _words(
    "acad am ann appl arch assoc biochem biol biophys br bull cancer cell chem clin curr dev endocrinol engl environ "
    "eur exp genet hematol hum immunol inst int invest lett med metab microbiol mol mutagen nat natl neurol neurosci "
    "nutr oncol opin pathol pharmacol physiol proc psychiatr radiol res rev sci soc surg ther toxicol virol zool "
)

# Routes and frequencies of doses. After a verb or a preposition they describe what follows ("received i.v. Ringer").
_DOSE = re.compile(r"(?:[a-z]\.){1,3}[a-z]")
_DOSE_GOES_ON = _words(
    "a an the of for with by via per and or plus from to as each either both single daily receive received receives "
    "receiving continuous additional adjuvant prophylactic preoperative postoperative intraoperative"
)
_LATIN = frozenset(("e.g", "i.e", "c.f", "a.k.a", "q.v", "s.l", "s.s"))

# What is called by a letter, where the noun may be in title case: "Group B. Patients", but not "Nicholas J. Smith".
_LETTERED = _words(
    "annexin antigen apolipoprotein arm case chain class cluster coenzyme cohort complex component con cyclosporin "
    "cyclosporine dnase domain enterotoxin experiment factor fraction group groups haemophilia hemoglobin hemophilia "
    "hepatitis immunoglobulin influenza kinase lipid model motif panel part peptide period phase phospholipase plan "
    "protein region regimen rnase sample section series serogroup serotype site stage strain study subgroup substance "
    "subtype subunit syndrome team toxin trial trails troponin type variant virus vitamin vitamins zone"
)

# Lower-case words before the initial of a name or of a genus: "in S. Typhimurium", "the late W. Osler".
_BEFORE_NAMES = _words(
    "a an the of in on at by to for from with and or nor but as than that which against between versus vs via into "
    "see cf eg ie our his her their its this these van von de der la le du di da del ten ter late author authors "
    "colleague colleagues professor prof dr doctor president editor chairman surgeon physician physicist founder son "
    "daughter brother sister father mother husband wife patient"
)
_CAPITAL_SEROVARS = re.compile(
    r"(?:Typhi|Paratyphi|Enteritidis|Dublin|Infantis|Newport|Heidelberg|Montevideo|Typhisuis)"
)

# A word that begins a sentence, whatever precedes it, and is no name.
_STARTS = _words(
    "The This These Those That There It Its We Our They Their He She His Her If In On At For From After Before During "
    "Since While When Where Although Though However Thus Therefore Hence Moreover Furthermore Nevertheless Here Then "
    "Such Some Several Most Many Both Each All No Not Only Among Under Using With Without To As By Because Similarly "
    "Additionally Conversely Finally Overall Further Other One Two Three Four Five Six Seven Eight Nine Ten An"
)
_HEADING = re.compile(r"[A-Z]{4,}[A-Z &/]*:")
_PLURAL_SUBJECT = re.compile(r"[A-Z][a-z]+s (?:were|are|had|have|rose|fell|did)\b")
_CAPITALISED = re.compile(r"[A-Z](?:[a-z]|[A-Z]{2}|\s+[a-z]|-[a-z])")

_OPENING = "([{\"'“,;=<>~"
_NUMBER = re.compile(r"[(\[<>=~±]*[-+]?\d[\d.,]*(?:[-–]\d[\d.,]*)?\)?")
_WORD_NUMBERS = _words("one two three four five six seven eight nine ten per")
_LIST_NUMBER = re.compile(r"\s*\d{1,2}\.\s+")
_VOLUME = re.compile(r"\d+\s?(?:\(\d+\)\s?)?[,:]\s?\w?\d")
_UNIT_GOES_ON = re.compile(r"/\s?[a-zµμ]|(?:kg|g|m?l|min|h|hr|d|day|s|sec|m2)\s?(?:-\d|\(-\d\))")
_JOURNAL_WORD = re.compile(r"[A-Z][a-z]*\.\s+")
_NAME = re.compile(r"(?:^|[^A-Za-z0-9])(?:[A-Z][a-z]{0,5}|[A-Za-z0-9]*[A-Z]+[A-Z0-9]+)$")
_DEGREES = re.compile(r"[CFK]\b")
_NEW_SENTENCE = re.compile(r"[A-Z][a-z]{2,}|(?:A|I|An|As|At|By|He|If|In|It|My|No|Of|On|So|To|Up|We)[\s,]")
_LOWER_WORD = re.compile(r"[a-z]{2,}(?:[\s,;:.)-]|$)|a\s")
_WORD = re.compile(r"[A-Za-z]+(?![A-Za-z-])")
_CLOSING = re.compile(r"[)\]]+\s+(?=[A-Z\d])")
_SENTENCE_BEFORE = re.compile(r"(?:^|[.?!])\s*$")
_REACH = 48  # characters that the rules see on each side of a boundary
_CITED = r"\d{1,3}(?:\s?[,–-]\s?\d{1,3})*"
_CITATION = re.compile(rf"(?:{_CITED}|[⁰¹²³⁴-⁹]+(?:[,˒⁻–][⁰¹²³⁴-⁹]+)*)\s+(?=[A-Z(\[\"“])")
_CITATION_IN_BRACKETS = re.compile(rf"(?:\({_CITED}\)|\[{_CITED}\])\s+(?=[A-Z])")
# A decimal without its zero follows these: "values were.5 Higher".
_BEFORE_DECIMALS = _words(
    "and are between beyond below above from least most over than the was were with about under equal equals "
    "alpha beta version release figs refs eqs suppl approx nos vol vols chap sect part"
)

_NEVER_CITED = _BEFORE_DECIMALS | _JOURNALS | _UNITS

# Full stops to look at: right before a capital letter, a number or a bracket; before a lower-case letter or a number,
# where a sentence ends rarely; and after a letter or an abbreviation that the splitter judges wrongly. The search takes
# a good part of the time: character classes are faster than \s and \d, and tests that fail early come first.
_ENDINGS = "min|sec|etc| hr|bsp|ssp| pv| bv| cv|ser|rov|var|ppl|upp|rox|viz|deg"
_CANDIDATE = re.compile(
    r"\.(?:"
    r"[A-Z()\[\]¹²³⁰⁴-⁹]|[0-9](?<=[^0-9]\..)"
    rf"|[ \n](?:[a-z0-9/ \n]|(?<=[^A-Za-z][A-Za-z]\.[ \n])|(?<=(?:{_ENDINGS})\.[ \n]))"
    r")"
)


def _table(characters: str) -> npt.NDArray[np.bool_]:
    """Return a table that tells for each byte whether it is one of the characters."""
    return np.isin(np.arange(256), list(characters.encode()))


_LETTER, _DIGIT, _BLANK = _table(ascii_letters), _table(digits), _table(" \n\t" + ASCII_SEPARATORS)
_NEXT_TO_STOP = _table(ascii_uppercase + "()[]")
# Before one of these and after a blank, `corrected` ends no sentence that the splitter hasn't ended.
_NEVER_SPLIT = _table(ascii_lowercase + digits + "/")
_ENDING_CODES = [int.from_bytes(ending.encode(), "big") for ending in _ENDINGS.split("|")]


def stops_of_texts(data: bytes, ends: Offsets, text_ends: Offsets) -> dict[int, list[int]]:
    """Find the full stops to look at in many texts at once, which is faster than a regular expression for each.

    Args:
        data: the texts in UTF-8. What is found in those that aren't ASCII is of no use.
        ends: the offsets in `data` at which the sentences end, as sentencex has split them.
        text_ends: the offset in `data` at which each text ends.

    Returns:
        For the number of each text that `corrected` may change, the stops that it must look at, as offsets in the text.
    """
    # The conditions of `_CANDIDATE`. Few of the stops that fulfil them don't match, at the borders of texts.
    codes = np.frombuffer(data, np.uint8)
    stops = np.flatnonzero(codes == ord("."))
    third, second, first, after, following = (codes.take(stops + shift, mode="clip") for shift in (-3, -2, -1, 1, 2))
    endings = np.where(_BLANK[third], ord(" "), third).astype(np.int64) << 16 | second.astype(np.int64) << 8 | first
    judged_wrongly = _LETTER[first] & ~_LETTER[second] | np.isin(endings, _ENDING_CODES)
    unsplit = ends[np.searchsorted(ends, stops, side="right")] > stops + 3
    after_blank = np.where(_NEVER_SPLIT[following], ~unsplit, _BLANK[following] | judged_wrongly)
    wanted = _NEXT_TO_STOP[after] | _DIGIT[after] & ~_DIGIT[first] | _BLANK[after] & after_blank
    stops = stops[wanted]
    numbers = np.searchsorted(text_ends, stops, side="right")
    starts = np.concatenate([[0], text_ends[:-1]])
    filled = np.flatnonzero(starts < text_ends)
    found: dict[int, list[int]] = {number: [] for number in filled[_DIGIT[codes[starts[filled]]]].tolist()}
    inside = stops + 1 < text_ends[numbers]
    for number, stop in zip(numbers[inside].tolist(), (stops - starts[numbers])[inside].tolist(), strict=True):
        found.setdefault(number, []).append(stop)
    return found


def corrected(text: str, ends: list[int], stops: Iterable[int] | None = None) -> list[int]:
    """Correct the boundaries of a text that sentencex has split.

    Args:
        text: the text.
        ends: the offsets at which its sentences end; the last one is the length of the text.
        stops: the offsets of the full stops to look at, from `stops_of_texts`; by default, they are searched for.

    Returns:
        The corrected offsets.
    """
    changes: list[tuple[int, int]] = []  # a wrong end, or 0, and a right one, or 0
    if text[:1].isdigit() and (number := _LIST_NUMBER.match(text)):
        changes.append((number.end(), 0))
    found = _CANDIDATE.finditer(text) if stops is None else (_CANDIDATE.match(text, stop) for stop in stops)
    for match in filter(None, found):
        stop, start = match.span()
        number_of_end = bisect_right(ends, stop)
        end = ends[number_of_end]
        if end > start == stop + 3 and not text[stop + 2].isspace():
            continue  # a lower-case letter or a number: what the splitter hasn't split is never split
        start = stop + 1
        while text[start : start + 1].isspace():
            start += 1
        if start == len(text):
            continue
        if end > start:
            if end := _missed_end(text, stop, start):
                changes.append((0, end))
            continue
        goes_on = start > stop + 1 and _goes_on(text, stop, start)
        right = 0 if goes_on else end if start > stop + 1 else _end_without_space(text, start)
        if right != end:
            changes.append((end, right))
            while (
                text[start].isdigit()
                and number_of_end
                and _JOURNAL_WORD.fullmatch(text, ends[number_of_end - 1], ends[number_of_end])
            ):
                number_of_end -= 1  # "Mol. Cell. Biol. 15"
                changes.append((ends[number_of_end], 0))
        elif text[start].isdigit() and (number := _LIST_NUMBER.match(text, start)):
            changes.append((number.end(), 0))
    if not changes:
        return ends
    wrong, right_ends = zip(*changes, strict=True)
    return sorted({*ends, *right_ends} - {0, *wrong} | {len(text)})


def _goes_on(text: str, stop: int, start: int) -> bool:
    """Tell whether a sentence goes on after an abbreviation.

    Args:
        text: the text.
        stop: offset of the full stop.
        start: offset of the next word.
    """
    before, word = _before(text, stop)
    if not word:
        return False
    after = text[start : start + _REACH]
    if _UNIT_GOES_ON.match(after) and _last_unit(word) in _UNITS:
        return True
    if _first_word(after) in _STARTS:
        return False
    name = word.casefold()
    if name in _NEVER_LAST:
        return True
    is_capital = after[0].isupper()
    if name in _RARELY_LAST and (not is_capital or (name == "deg" and _DEGREES.match(after))):
        return True
    if name in _JOURNALS and word[0].isupper() and _VOLUME.match(after):
        return True
    if not _LOWER_WORD.match(after):
        return False
    return name in _BEFORE_LOWER or (word in _UNITS and _is_number(before))


def _before(text: str, stop: int) -> tuple[str, str]:
    """Return the text before a full stop, without its last word, and that word."""
    before = text[max(0, stop - _REACH) : stop]
    words = before.split(None)
    if not words or before[-1].isspace():
        return before, ""
    return before[: len(before) - len(words[-1])].rstrip(), words[-1].lstrip(_OPENING)


def _end_without_space(text: str, end: int) -> int:
    """Return the end of a sentence that is thought to end there, right before the next word; 0 if it goes on."""
    if cited := _CITATION_IN_BRACKETS.match(text, end) or _CITATION.match(text, end):
        return cited.end()
    if text[end] in "([":
        return end
    return end if _starts_without_space(text[max(0, end - _REACH) : end - 1], text[end : end + _REACH]) else 0


def _starts_without_space(before: str, after: str) -> bool:
    """Tell whether a sentence starts right after a full stop, as in "lysed.Then", rather than "Ca(2+).Mg(2+)"."""
    if re.search(r"[+-]\)?$", before) or not _NEW_SENTENCE.match(after):
        return False
    return _first_word(after) in _STARTS or not _NAME.search(before)  # "Ras.Raf", "GRB2.Sos"


def _missed_end(text: str, stop: int, start: int) -> int:
    """Return where a sentence ends that the splitter hasn't ended at a full stop; 0 if none does.

    Args:
        text: the text.
        stop: offset of the full stop.
        start: offset at which the next sentence would start.
    """
    following = text[stop + 1]
    if following in ")]":
        closing = _CLOSING.match(text, stop + 1)
        opening = text.rfind("(" if following == ")" else "[", max(0, stop - 10 * _REACH), stop)
        if not closing or opening < 0 or not _SENTENCE_BEFORE.search(text[max(0, opening - 3) : opening]):
            return 0
        return closing.end()
    after = text[start : start + _REACH]
    if start == stop + 1:
        cited = _CITATION.match(after)
        return start + cited.end() if cited and _may_be_cited(_before(text, stop)[1]) else 0
    if not _CAPITALISED.match(after):
        return 0
    before, word = _before(text, stop)
    return start if word and _is_last(word, before.split()[-1] if before else "", before, after) else 0


def _is_last(word: str, previous: str, before: str, after: str) -> bool:
    """Tell whether a sentence ends after a letter or an abbreviation that a capital letter follows.

    Args:
        word: the letter or abbreviation, without its full stop.
        previous: the word before it.
        before: the text before it.
        after: the text after the full stop.
    """
    if _first_word(after) in _STARTS or _HEADING.match(after):
        return word not in _LATIN
    if word == "etc":
        return True
    if len(word) == 1 and word.isupper():
        return _is_label(word, previous, before, after)
    if "." in word:
        if word.isupper() or word.istitle():  # "in the U.K. Rates were", but "U.S. Food and Drug Administration"
            return _PLURAL_SUBJECT.match(after) is not None
        return bool(_DOSE.fullmatch(word)) and word not in _LATIN and previous.lower() not in _DOSE_GOES_ON
    unit = _last_unit(word)
    return unit in _UNITS and ("/" in word or _is_number(before) or word[0].isdigit())


def _is_label(letter: str, previous: str, before: str, after: str) -> bool:
    """Tell whether a capital letter is a label or unit ("hepatitis C. Patients"), rather than an initial."""
    if letter == "S" and _CAPITAL_SEROVARS.match(after):
        return False
    if letter in _UNITS and _is_number(before) and not re.fullmatch(r"(?:19|20)\d\d", previous):
        return True
    if previous.lower() in _LETTERED:
        return True
    if previous in ("and", "or", "versus", "vs."):  # "groups A and B. Patients"
        return re.search(r"(?:^|[\s,])[A-Z],? \S+$", before) is not None
    if previous[:1].islower() or "°" in previous:
        return previous.isalpha() and previous not in _BEFORE_NAMES
    return letter != "J" and re.fullmatch(r"[A-Z][A-Za-z]*[A-Z][A-Za-z]*", previous) is not None  # "DNase I"


def _may_be_cited(word: str) -> bool:
    """Tell whether digits right after a word and a full stop are the numbers of citations, as in "cells.12"."""
    if not word:
        return False
    if not word.isascii() or not word.isalpha():
        return word[-1:].isalpha() is False or word.replace("-", "").isalpha()
    return len(word) > 2 and word[-2:].islower() and word.casefold() not in _NEVER_CITED


def _is_number(before: str) -> bool:
    words = before.split()[-1:]
    return bool(words) and (words[0] in _WORD_NUMBERS or _NUMBER.fullmatch(words[0]) is not None)


def _last_unit(word: str) -> str:
    """Return the last unit of a compound such as "mg/kg" or "mg.kg(-1"."""
    return re.sub(r"[-(]*\d\)?$|^\d+", "", word).rpartition("/")[2].rpartition(".")[2]


def _first_word(after: str) -> str:
    found = _WORD.match(after)
    return found[0] if found else ""
