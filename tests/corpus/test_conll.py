"""Read and write CoNLL files."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bioptimus_hf.corpus.conll import read_conll, read_words
from bioptimus_hf.corpus.documents import Document, Entity, Passage, join_passages, without_overlaps
from bioptimus_hf.corpus.formats import DocumentReader, write_documents
from bioptimus_hf.corpus.reading import ReadOptions
from bioptimus_hf.errors import InputError


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("Aspirin\tB-Chemical\nhelps\n", "line 2: expected a token and its tag, not 'helps'"),
        ("Aspirin\tB-Chemical\nhelps\tsome\tO\n", "line 2: 3 columns, but line 1 has 2"),
        ("Aspirin\tB-Chemical\n\n\tO\n", "line 3: the token is empty"),
        ("Aspirin\tB-Chemical\n \tO\n", "line 2: the token is empty"),
        ("Aspirin\tX-Chemical\n", "line 1: unknown tag 'X-Chemical'"),
        (
            "Aspirin\tB\n",
            "line 1: the tag 'B' has no type: name the type of all entities (type_name, or merged_type of",
        ),
        ("Aspirin\tB-Chemical\nhelps\tI\n", "line 2: the tag 'I' has no type"),
        ("Aspirin\tB-Chemical\n#\tx\tO\n", "line 2: 3 columns, but line 1 has 2"),
        ("#\tX\n", "line 1: unknown tag 'X'"),
        ("O\tAspirin\n", "line 1: unknown tag 'Aspirin'"),
        ("# only\n# comments\n", "has no sentence"),
        ("Aspirin\tO\r\rhelps\r", "line 3: expected a token and its tag, not 'helps'"),
        ("Aspirin\tB-\n", "line 1: unknown tag 'B-'"),
        ("Aspirin\tB-Chemical-\n", "line 1: unknown tag 'B-Chemical-'"),
        ("Aspirin\t\n", "line 1: unknown tag ''"),
        ("", "has no sentence"),
        ("\n\n", "has no sentence"),
        ("-DOCSTART-\tO\n\n", "has no sentence"),
        (b"Aspirin\tB-Chemical\nna\xefve\tO\n", "line 2: not valid UTF-8 at byte 21 of the file: convert the file"),
        ("na\u00efve\tO\n".encode("latin-1"), "convert the file, for example with iconv -f latin1 -t utf-8"),
    ],
)
def test_bad_conll_is_refused_in_one_line_that_names_file_and_line(
    tmp_path: Path, content: str | bytes, says: str
) -> None:
    path = write(tmp_path / "train.tsv", content)
    with pytest.raises(InputError) as caught:
        read_conll(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_conll_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train\.tsv can't be read \(No such file"):
        read_conll(tmp_path / "train.tsv")


def test_variants_of_the_format_are_read(tmp_path: Path) -> None:
    expected = [(["Aspirin", "helps"], ["B-Chemical", "O"]), (["pain"], ["B-Disease"])]
    for number, content in enumerate(
        (
            "Aspirin\tB-Chemical\nhelps\tO\n\npain\tB-Disease\n\n",
            "Aspirin\tB-Chemical\nhelps\tO\n\n\n \npain\tB-Disease",
            "\ufeffAspirin\tB-Chemical\r\nhelps\tO\r\n\r\npain\tB-Disease\r\n",
            "-DOCSTART- -X- -X- O\n\nAspirin NN x B-Chemical\nhelps VB x O\n\npain NN x B-Disease\n",
            "-DOCSTART-\n\nAspirin\tB-Chemical\nhelps\tO\n\n-DOCSTART- -X- O O\n\npain\tB-Disease\n",
        )
    ):
        assert read_conll(write(tmp_path / f"{number}.tsv", content)) == expected, content


def test_unicode_line_separators_do_not_end_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "a\u2028b\tO\nc\u0085\x0cd\tB-X\n")
    assert read_conll(path) == [(["a\u2028b", "c\u0085\x0cd"], ["O", "B-X"])]


def test_inside_tags_that_continue_nothing_are_repaired_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "a.tsv", "a\tI-X\nb\tI-X\nc\tI-Y\nd\tO\ne\tI-Y\n\nf\tI-Y\n")
    assert [tags for _, tags in read_conll(path)] == [["B-X", "I-X", "B-Y", "O", "B-Y"], ["B-Y"]]
    assert (
        f"{path}: I- tags that begin an entity (as in IOB1), read as B-: 4 (for example line 1, 'I-X')" in caplog.text
    )


def test_compressed_conll_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv.gz", gzip.compress(b"pain\tB-Disease\n"))
    assert read_conll(path) == [(["pain"], ["B-Disease"])]


TWO = [(["Aspirin", "helps"], ["B-Chemical", "O"]), (["severe", "pain"], ["B-Disease", "I-Disease"])]
SHAPES = {
    "CoNLL-2003": "-DOCSTART- -X- -X- O\n\nAspirin NNP B-NP B-Chemical\nhelps VBZ B-VP O\n\n"
    "severe JJ B-NP B-Disease\npain NN I-NP I-Disease\n",
    "CoNLL-2003 with tabs": "-DOCSTART-\tO\n\nAspirin\tB-Chemical\nhelps\tO\n\nsevere\tB-Disease\npain\tI-Disease\n",
    "several blanks": "Aspirin   N  B-Chemical  \nhelps     V  O\n\nsevere    J  B-Disease\npain\tN I-Disease\n",
    "JNLPBA": "###MEDLINE:95369245\n\nAspirin\tB-Chemical\nhelps\tO\n\n###MEDLINE:2\tO\n\nsevere\tB-Disease\n"
    "pain\tI-Disease\n\n",
    "CoNLL-U": "# newdoc id = a\n# sent_id = 1\n# text = Aspirin helps\nAspirin\t_\tB-Chemical\nhelps\t_\tO\n\n"
    "# sent_id = 2\nsevere\t_\tB-Disease\n# a comment within\npain\t_\tI-Disease\n",
    "CoNLL-2012": "#begin document (bc/a); part 000\nAspirin B-Chemical\nhelps O\n\nsevere B-Disease\n"
    "pain I-Disease\n\n#end document\n",
    "offsets": "Aspirin\t0\t7\tB-Chemical\nhelps\t8\t13\tO\n\nsevere\t14\t20\tB-Disease\npain\t21\t25\tI-Disease\n",
    "empty last column": "Aspirin\tB-Chemical\t\nhelps\tO\t \n\nsevere\tB-Disease\t\npain\tI-Disease\n",
    "carriage returns": "\ufeffAspirin\tB-Chemical\rhelps\tO\r\rsevere\tB-Disease\rpain\tI-Disease\r",
    "both line ends": "Aspirin\tB-Chemical\rhelps\tO\r\n\r\nsevere\tB-Disease\r\npain\tI-Disease",
    "blank lines with blanks": " \nAspirin\tB-Chemical\nhelps\tO\n\t\t\n \nsevere\tB-Disease\npain\tI-Disease\n\n\n",
    "IOB1": "Aspirin\tI-Chemical\nhelps\tO\n\nsevere\tI-Disease\npain\tI-Disease\n",
    "IOBES": "Aspirin\tS-Chemical\nhelps\tO\n\nsevere\tB-Disease\npain\tE-Disease\n",
    "BILOU": "Aspirin\tU-Chemical\nhelps\tO\n\nsevere\tB-Disease\npain\tL-Disease\n",
    "lower case": "Aspirin\tb-Chemical\nhelps\to\n\nsevere\tb_Disease\npain\ti_Disease\n",
}


def test_shapes_of_public_files_are_read(tmp_path: Path) -> None:
    for number, (shape, content) in enumerate(SHAPES.items()):
        path = write(tmp_path / f"{number}.tsv", content)
        assert read_conll(path) == TWO, shape
        assert [word for words in read_words(path) for word in words] == ["Aspirin", "helps", "severe", "pain"], shape


def test_a_number_sign_may_be_a_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, content in (
        ("tabs", "# a comment\n#\tO\n#1\tB-X\n# with blanks\tO\n"),
        ("blanks", "# a longer comment\n# O\n#1 B-X\n# comment\nx O\n"),
    ):
        words, tags = read_conll(write(tmp_path / name, content))[0]
        assert words[:2] == ["#", "#1"]
        assert tags == ["O", "B-X", "O"]
    assert f"{tmp_path / 'tabs'}: comments, left out: 1 (for example line 1, '# a comment')" in caplog.text
    assert f"{tmp_path / 'blanks'}: comments, left out: 2 (for example line 1" in caplog.text
    four = "# # B-NP O\nx y B-NP B-X\n"
    assert read_conll(write(tmp_path / "four", four)) == [(["#", "x"], ["O", "B-X"])]


MARKS = {  # how entities of one and of several tokens are marked
    "IOB2": ("B", "BI"),
    "IOBES": ("S", "BIE"),
    "BILOU": ("U", "BIL"),
    "BMES": ("S", "BME"),
}
entities = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4), st.sampled_from(("X", "Y", "a-b"))), max_size=6)


def written(found: list[tuple[int, int, str]], scheme: str, *, typed: bool = True) -> list[str]:
    """Return the tags of entities, each given as the gap before it, its length and its type."""
    single, several = MARKS.get(scheme, ("I", "II"))
    tags: list[str] = []
    before = ""
    for gap, size, kind in found:
        marks = single if size == 1 else several[0] + several[1] * (size - 2) + several[-1]
        if scheme == "IOB1" and not gap and tags and (before == kind or not typed):
            marks = "B" + marks[1:]
        tags += [*["O"] * gap, *(f"{mark}-{kind}" if typed else mark for mark in marks)]
        before = kind
    return [*tags, "O"]


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("scheme", [*MARKS, "IOB1"])
@given(rows=st.lists(entities, min_size=1, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
def test_every_scheme_means_the_same_entities(
    scheme: str, typed: bool, rows: list[list[tuple[int, int, str]]], tmp_path: Path
) -> None:
    lines = (
        f"w{number}\t{tag}\n" for row in rows for number, tag in enumerate([*written(row, scheme, typed=typed), ""])
    )
    path = write(tmp_path / "a.tsv", "".join(line if not line.endswith("\t\n") else "\n" for line in lines))
    expected = [written(row, "IOB2") for row in rows]
    if not typed:
        expected = [[tag if tag == "O" else f"{tag[0]}-Any" for tag in tags] for tags in expected]
    assert [tags for _, tags in read_conll(path, type_name="Any")] == expected


def test_conversions_are_said_once_with_their_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.tsv", "a\tS-X\nb\tO\n\nc\tB-X\nd\tE-X\n")
    read_conll(path)
    assert caplog.messages == [f"{path}: tags of other schemes, converted to IOB2: 2 (for example line 1, 'S-X')"]
    caplog.clear()
    path = write(tmp_path / "b.tsv", "a\tB\nb\tO\n\nc\tB\nd\tI\n")
    read_conll(path, type_name="X")
    assert caplog.messages == [f"{path}: tags without a type, read as X: 3 (for example line 1, 'B')"]


def test_tags_with_and_without_a_type_are_not_mixed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "a\tB-X\nb\tO\nc\tB\n")
    with pytest.raises(InputError, match=r"line 3: tag 'B', but .*line 1 has 'B-X': give all tags a type, or none"):
        read_conll(path, type_name="X")


def test_the_shared_cases_are_read(cases_dir: Path) -> None:
    asthma = ["Aspirin", "causes", "severe", "asthma", "."]
    assert read_conll(cases_dir / "iobes.tsv") == [
        (asthma, ["B-Chemical", "O", "B-Disease", "I-Disease", "O"]),
        (["Nothing", "here", "."], ["O"] * 3),
    ]
    assert read_conll(cases_dir / "tags_without_type.tsv", type_name="Any") == [
        (asthma, ["B-Any", "O", "B-Any", "I-Any", "O"]),
        (["No", "more", "."], ["O"] * 3),
    ]
    for name in ("iobes.tsv", "tags_without_type.tsv"):
        found = documents(cases_dir / name, annotations="optional")
        assert [document.text for document in found] == [" ".join(words) for words in read_words(cases_dir / name)]
    with pytest.raises(InputError, match=r"line 1: the tag 'B' has no type: name the type of all entities \(type_name"):
        documents(cases_dir / "tags_without_type.tsv")


def documents(path: Path, **options: Any) -> list[Document]:
    return list(DocumentReader(path, options=ReadOptions(**options)))


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        ("-DOCSTART- -X- O O\n\na\tO\n\nb\tO\n\n-DOCSTART- -X- O O\n\nc\tO\n", ["1", "2"]),
        ("###MEDLINE:17\n\na\tO\n\nb\tO\n\n###MEDLINE:4\n\nc\tO\n", ["17", "4"]),
        ("-DOCSTART-\n###MEDLINE:17\na\tO\n\nb\tO\n\n-DOCSTART-\n###MEDLINE:4\nc\tO\n", ["17", "4"]),
        ("# newdoc id = x 1\n# sent_id = 1\na\tO\n\nb\tO\n\n# newdoc\nc\tO\n", ["x 1", "2"]),
    ],
)
def test_documents_are_kept_together(content: str, ids: list[str], tmp_path: Path) -> None:
    found = documents(write(tmp_path / "a.conll", content))
    assert [(document.id, document.text) for document in found] == list(zip(ids, ("a\nb", "c"), strict=True))
    assert [len(document.passages) for document in found] == [2, 1]


def test_sentences_before_the_first_document_stand_alone(tmp_path: Path) -> None:
    content = "a\tO\n\nb\tO\n\n-DOCSTART- -X- O O\n\nc\tB-X\n\nd\tB-X\ne\tI-X\n\n-DOCSTART- -X- O O\n\n"
    path = write(tmp_path / "a.conll", content)
    found = documents(path)
    assert [document.text for document in found] == ["a", "b", "c\nd e", ""]
    assert [entity.text for entity in found[2].entities] == ["c", "d e"]
    write_documents(tmp_path / "b.conll", found)
    assert (tmp_path / "b.conll").read_text() == content


def test_an_error_in_one_sentence_is_an_error_of_its_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.conll", "-DOCSTART-\n\na\tO\n\nb\tX\n\n-DOCSTART-\n\nc\tO\n")
    reader = DocumentReader(path, on_error="skip")
    assert [document.text for document in reader] == ["c"]
    assert len(reader.skipped) == 1
    assert "line 5: unknown tag 'X'" in reader.skipped[0]


def test_annotations_that_are_not_needed_stop_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.conll", "a\tX\nb\tB-X\nc\n\nd\tB\ne\tx\tO\n\nf\tI-Y\n")
    assert [document.text for document in documents(path, annotations="ignored")] == ["a b c", "d e", "f"]
    assert not caplog.messages
    found = documents(path, annotations="optional")
    assert [document.text for document in found] == ["a b c", "d e", "f"]
    assert [[entity.text for entity in document.entities] for document in found] == [["b"], [], ["f"]]
    what = "tags that can't be read or have no type, left out: 4 (for example line 1, 'X')"
    assert caplog.messages[0] == f"{path}: {what}"
    with pytest.raises(InputError, match="line 1: unknown tag 'X'"):
        documents(path)


@pytest.mark.parametrize("annotations", ["optional", "ignored"])
def test_a_table_of_something_else_is_not_conll(annotations: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "id\ttitle\n1\tAspirin\n\n2\tPain\n")
    with pytest.raises(InputError, match="line 1: unknown tag 'title'"):
        documents(path, annotations=annotations)


@st.composite
def made_documents(draw: st.DrawFn) -> Document:
    """A text with or without tokens and sentences, and some entities."""
    words = st.lists(st.sampled_from(["IL-2", "E.", "coli", "β", "#", "O", "A.", "x"]), min_size=1, max_size=5)
    sentences = draw(st.lists(words, max_size=4))
    text, passages = join_passages((" ".join(sentence), None, {}) for sentence in sentences)
    found = [Entity(*match.span(), match.group(), "X-y") for match in re.finditer(r"IL-2|coli|E\. coli", text)]
    kept = [entity for entity in found if draw(st.booleans())]
    tokens = [match.span() for match in re.finditer(r"\S+", text)]
    kind = draw(st.sampled_from(["text", "sentences", "one sentence"]))
    if kind == "text" or not text:
        return Document("1", text, kept)
    return Document("1", text, kept, passages if kind == "sentences" else (), tokens)


@given(made=st.lists(made_documents(), min_size=1, max_size=5))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_documents_stay_documents(made: list[Document], tmp_path: Path) -> None:
    write_documents(tmp_path / "a.conll", made)
    found = documents(tmp_path / "a.conll")
    assert ["".join(document.text.split()) for document in found] == ["".join(one.text.split()) for one in made]
    assert [len(document.entities) for document in found] == [len(without_overlaps(one.entities)) for one in made]
    for document, one in zip(found, made, strict=True):
        if one.tokens:
            assert [document.text[slice(*span)] for span in document.tokens] == [
                one.text[slice(*t)] for t in one.tokens
            ]
        for entity in document.entities:
            assert document.text[entity.start : entity.end] == entity.text
    write_documents(tmp_path / "b.conll", found)
    assert (tmp_path / "b.conll").read_bytes() == (tmp_path / "a.conll").read_bytes()


def test_tokens_with_blanks_are_cut_beside_them(tmp_path: Path) -> None:
    text = "10 mg aspirin daily"
    found = Document("1", text, [Entity(6, 13, "aspirin", "Drug")], tokens=[(0, 13), (14, 19)])
    write_documents(tmp_path / "a.conll", [found])
    assert read_conll(tmp_path / "a.conll") == [(["10 mg", "aspirin", "daily"], ["O", "B-Drug", "O"])]


def test_a_sentence_without_tokens_leaves_no_line(tmp_path: Path) -> None:
    write_documents(
        tmp_path / "a.conll", [Document("1", "\ufeff\n\nAsthma.", passages=(Passage(0, 1, 0), Passage(3, 10, 3)))]
    )
    assert (tmp_path / "a.conll").read_text() == "-DOCSTART- -X- O O\n\nAsthma\tO\n.\tO\n\n"


def test_spacy_reads_our_documents(tmp_path: Path) -> None:
    """Six abstracts of three sentences are six documents."""
    convert = pytest.importorskip("spacy.training.converters", reason="needs spaCy").conll_ner_to_docs
    texts = [f"Aspirin causes asthma. We treated {number} patients. None was cured." for number in range(6)]
    entities = [Entity(0, 7, "Aspirin", "Chemical"), Entity(15, 21, "asthma", "Disease")]
    write_documents(tmp_path / "a.conll", [Document("1", text, entities) for text in texts])
    docs = list(convert((tmp_path / "a.conll").read_text(encoding="utf-8"), n_sents=1, no_print=True))
    assert len(docs) == 6
    assert [[(entity.text, entity.label_) for entity in doc.ents] for doc in docs] == [
        [("Aspirin", "Chemical"), ("asthma", "Disease")]
    ] * 6
    assert [len(list(doc.sents)) for doc in docs] == [3] * 6


@pytest.mark.parametrize("first", [0, 1])
def test_a_column_of_numbers_is_not_taken_for_the_tokens(tmp_path: Path, first: int) -> None:
    """CoNLL-U and GermEval number the tokens of each sentence."""
    lines = [
        f"{first + number}\t{word}\t_\t{tag}"
        for number, (word, tag) in enumerate([("a", "O"), ("b", "B-X"), ("c", "O")])
    ]
    with pytest.raises(InputError, match="line 1: the first column numbers the tokens: remove it"):
        read_conll(write(tmp_path / "a.tsv", "\n".join([*lines, "", ""]).encode()))
    numbers = "".join(f"{number}\tO\n" for number in range(first, first + 5))
    assert read_conll(write(tmp_path / "b.tsv", numbers.encode()))[0][0] == [
        str(number) for number in range(first, first + 5)
    ]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("रोगी को दर्द है।", ["रोगी", "को", "दर्द", "है", "।"]),
        ("রোগীর ব্যথা", ["রোগীর", "ব্যথা"]),
        ("வலி, நோய்", ["வலி", ",", "நோய்"]),
        ("ปวดท้อง", ["ปวดท้อง"]),
        ("بِسْمِ ٱللّٰه", ["بِسْمِ", "ٱللّٰه"]),
        ("cafe\u0301 👩‍🔬🏽 ❤️.", ["cafe\u0301", "👩‍🔬🏽", "❤️", "."]),
        ("don't (IL-2)", ["don", "'", "t", "(", "IL", "-", "2", ")"]),
    ],
)
def test_tokens_keep_vowel_signs_joiners_and_selectors(tmp_path: Path, text: str, tokens: list[str]) -> None:
    """Tokens are separated by blanks when they are read again, which would take words apart."""
    write_documents(tmp_path / "a.conll", [Document("1", text)])
    assert [word for words in read_words(tmp_path / "a.conll") for word in words] == tokens
