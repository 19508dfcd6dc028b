"""Build a package from a NER head: a wheel with weights in half precision, tokenizer, card and licence.

    bioptimus package runs/mine/ner/ncbi-disease/v0.4/0 --name disease-finder --license Apache-2.0
    pip install dist/disease_finder-0.4-py3-none-any.whl
    bioptimus annotate --models disease-finder --input abstracts.jsonl --output_dir found

In Python, the installed head is Annotator("disease-finder"), or disease_finder.load(). The same head, options and
versions of the libraries give the same bytes.
"""

from __future__ import annotations

from bioptimus_hf.publishing.options import PackageOptions

OPTIONS = (PackageOptions,)


def execute(options: PackageOptions) -> None:
    """Build the wheel, and print where it is and how large."""
    from bioptimus_hf.publishing.package import package_head

    wheel = package_head(options)
    print(f"{wheel}: {wheel.stat().st_size / 1e6:,.1f} MB")
