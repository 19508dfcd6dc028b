"""Find named entities in files of documents, with one or several NER heads.

    bioptimus annotate --models runs/mine/ner/ncbi-disease/v0.4/0 --input abstracts.jsonl --output_dir found
    bioptimus annotate --models HEAD OTHER_HEAD --input pubmed/*.xml.gz --output_dir found --format pubtator

Reads text (a document per line or file), JSON lines and arrays, CSV, TSV, Parquet, PubMed XML, JATS, PubTator, BioC,
brat and CoNLL, plain or .gz, and data sets on the Hub, with texts of any length. Writes one file per input file
(a.txt.jsonl for a.txt), in the same sub-folder: JSON lines, CSV, TSV, Parquet, PubTator, BioC, brat, CoNLL or an HTML
page, with offsets in characters. Files are written atomically, and files that are already done are skipped: run the
same command again to resume. If a file can't be annotated, the others still are, and the exit status is 2.
With --runner ray, the files are annotated on any number of machines, with the same result.
"""

from __future__ import annotations

from bioptimus_hf.annotation.options import AnnotationOptions, RunnerOptions

OPTIONS = (AnnotationOptions, RunnerOptions)


def execute(options: AnnotationOptions, runner: RunnerOptions) -> None:
    """Annotate the files."""
    from bioptimus_hf.annotation.annotate_files import annotate_files

    annotate_files(options, runner)
