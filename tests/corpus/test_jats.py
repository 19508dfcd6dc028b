"""Read full texts of PubMed Central."""

from __future__ import annotations

from pathlib import Path

import pytest

from bioptimus_hf.corpus.dataset import load_corpus
from bioptimus_hf.corpus.formats import DocumentReader
from bioptimus_hf.errors import InputError

ARTICLE = """\
<article xmlns:mml="http://www.w3.org/1998/Math/MathML"><front>
<journal-meta><journal-title>Journal</journal-title></journal-meta><article-meta>
<article-id pub-id-type="pmid">1</article-id><article-id pub-id-type="pmc">22</article-id>
<title-group><article-title>IL<sub>2</sub> in <italic>E. coli</italic></article-title><subtitle>A trial</subtitle>
<trans-title-group><trans-title>IL2 chez E. coli</trans-title></trans-title-group></title-group>
<contrib-group><contrib><name>X</name></contrib></contrib-group>
<permissions><license><p>Open access</p></license></permissions>
<abstract><sec><title>Background</title><p>Asthma is
  bad.</p></sec></abstract>
<abstract abstract-type="graphical"><p><graphic/></p></abstract><trans-abstract><p>Asthme</p></trans-abstract>
</article-meta></front>
<body><p>Before sections.</p><sec><title>1. Methods</title>
<p>Cells<sup><xref ref-type="bibr">1</xref>,<xref ref-type="bibr">2</xref></sup> at 10<sup>5</sup> and more<xref
ref-type="bibr"><sup>3</sup></xref>. As in [<xref ref-type="bibr">4</xref>], Figure <xref ref-type="fig">1</xref>.<list>
<list-item><p>one</p></list-item><list-item><p>two</p></list-item></list>
After<fn><label>*</label><p>A note.</p></fn> it,
<inline-formula><alternatives><tex-math>\\documentclass{minimal}</tex-math><mml:math><mml:mi>x</mml:mi></mml:math>
</alternatives></inline-formula>.</p>
<sec><title>Deeper</title><p>In depth</p>
<fig><label>Figure 1</label><caption><title>What it is.</title><p>How it was done.</p></caption></fig>
<table-wrap><caption><p>Doses</p></caption><table><tr><td>1<p>cell</p></td></tr></table>
<table-wrap-foot><fn><p>in mg</p></fn></table-wrap-foot></table-wrap></sec></sec></body>
<back><ack><title>Thanks</title><p>To you</p></ack>
<ref-list><title>References</title><ref><mixed-citation><article-title>Cited</article-title></mixed-citation></ref></ref-list>
</back><sub-article><front-stub><title-group><article-title>Review</article-title></title-group></front-stub>
<body><p>By a reviewer</p></body></sub-article></article>
"""
PASSAGES = [
    ("title", "", "IL2 in E. coli"),
    ("title", "", "A trial"),
    ("heading", "Abstract", "Background"),
    ("abstract", "Abstract", "Asthma is bad."),
    ("paragraph", "", "Before sections."),
    ("heading", "", "1. Methods"),
    ("paragraph", "1. Methods", "Cells at 105 and more. As in [4], Figure 1. After it, x ."),
    ("paragraph", "1. Methods", "one"),
    ("paragraph", "1. Methods", "two"),
    ("footnote", "1. Methods", "A note."),
    ("heading", "1. Methods", "Deeper"),
    ("paragraph", "1. Methods", "In depth"),
    ("figure caption", "1. Methods", "What it is."),
    ("figure caption", "1. Methods", "How it was done."),
    ("table caption", "1. Methods", "Doses"),
    ("footnote", "1. Methods", "in mg"),
    ("heading", "", "Thanks"),
    ("paragraph", "Thanks", "To you"),
]


@pytest.mark.parametrize("name", ["a.nxml", "a.xml"])
def test_an_article_is_read_with_its_sections_and_captions(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(f'<!DOCTYPE article PUBLIC "-//NLM//DTD JATS" "JATS-archivearticle1.dtd">\n{ARTICLE}')
    (document,) = DocumentReader(tmp_path / name)
    assert document.id == "PMC22"
    found = [
        (passage.infons["type"], passage.infons.get("section", ""), document.text[passage.start : passage.end])
        for passage in document.passages
    ]
    assert found == PASSAGES
    assert load_corpus(tmp_path / name)["text"][:] == [document.text]


def test_articles_of_a_set(tmp_path: Path) -> None:
    ids = ["<article-id pub-id-type='pmcid'>PMC7</article-id>", "<article-id pub-id-type='doi'>10.1/x</article-id>"]
    articles = "".join(
        f"<article><front><article-meta>{given}<title-group><article-title>{number}</article-title></title-group>"
        f"</article-meta></front></article>"
        for number, given in enumerate([*ids, ""])
    )
    file = tmp_path / "set.xml"
    file.write_text(f"<pmc-articleset>\n{articles}</pmc-articleset>")
    reader = DocumentReader(file, on_error="skip")
    assert [(document.id, document.text) for document in reader] == [("PMC7", "0"), ("10.1/x", "1")]
    (skipped,) = reader.skipped
    assert skipped.startswith(f"{file}, line 2: the article has no article-id")
    file.write_text("<pmc-articleset></pmc-articleset>")
    assert not list(DocumentReader(file))


def test_a_section_without_a_heading_and_an_article_within_the_article(tmp_path: Path) -> None:
    body = (
        "<sec><title>One</title><sec><title>Deeper</title><p>a</p></sec><p>b</p></sec><sec><p>c</p></sec>"
        "<p>d<xref ref-type='bibr'><article><article-id pub-id-type='pmc'>2</article-id><p>left out</p></article>"
        "</xref></p>"
    )
    (tmp_path / "a.nxml").write_text(
        f"<article><front><article-id pub-id-type='pmc'>1</article-id></front><body>{body}</body></article>"
    )
    (document,) = DocumentReader(tmp_path / "a.nxml")
    assert document.id == "PMC1"
    sections = [(document.text[part.start : part.end], part.infons.get("section")) for part in document.passages]
    assert sections == [("One", None), ("Deeper", "One"), ("a", "One"), ("b", "One"), ("c", None), ("d", None)]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (ARTICLE[:900], r"line \d+: not well-formed XML"),
        ("<OAI-PMH><error>no such record</error></OAI-PMH>", "no article in JATS"),
        (f'<!DOCTYPE article [<!ENTITY a "b">]>{ARTICLE}', "declares the entity 'a'"),
        ("<html><body><p>Not found</p></body></html>", "root element <html>"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: str, error: str) -> None:
    (tmp_path / "a.nxml").write_text(content)
    with pytest.raises(InputError, match=error):
        list(DocumentReader(tmp_path / "a.nxml"))
