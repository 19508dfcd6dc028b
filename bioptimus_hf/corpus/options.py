"""Describe a corpus: which files or data set, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from bioptimus_hf.corpus.encodings import codec_name
from bioptimus_hf.corpus.reading import MAX_DOCUMENT_MEGABYTES, ReadOptions, named_columns
from bioptimus_hf.errors import InputError

TEXT_COLUMN_HELP = (
    "Field or column with the text in JSON, CSV, TSV, Parquet and Hub data sets; of several, such as title abstract, "
    "each becomes a passage"
)
UNIT_HELP = (
    "What is a document in plain text: a line or a file; must be given for many small .txt files (default: line)"
)


@dataclass(frozen=True)
class Corpus:
    """Which text is read.

    Raises:
        InputError: no corpus is named, or a value is out of range.
    """

    corpus: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Files of any format that can be annotated (text, JSON, CSV, Parquet, PubMed, JATS and others), "
            "folders or glob patterns, or the name of one data set on the Hub (name, name@revision, with :split "
            "appended if it isn't train)",
            "path": True,
        },
    )
    text_column: str | list[str] = field(default="text", metadata={"help": TEXT_COLUMN_HELP, "several": True})
    unit: Literal["line", "file"] | None = field(default=None, metadata={"help": UNIT_HELP})
    max_megabytes: float | None = field(default=None, metadata={"help": "Read at most this much text (10^6 bytes)"})
    errors: Literal["strict", "replace"] = field(
        default="strict",
        metadata={"help": "Bytes that can't be decoded: stop with an error, or replace and count them"},
    )
    encoding: str = field(
        default="utf-8",
        metadata={"help": "Encoding of text files, such as utf-16, latin-1 or cp1252; XML declares its own"},
    )
    max_document_megabytes: float = field(
        default=MAX_DOCUMENT_MEGABYTES,
        metadata={"help": "Longest document (10^6 bytes): longer ones are an error, since they exhaust the memory"},
    )
    validation_share: float = field(
        default=0.01,
        metadata={
            "help": "Share of the documents held out for validation, the same ones in every stage and for any seed"
        },
    )
    other_text: bool = field(
        default=False, metadata={"help": "Read other text than the vocabulary of this run was trained on"}
    )

    def __post_init__(self) -> None:
        if not self.corpus:
            raise InputError("name files, folders or a data set on the Hub", argument="corpus")
        if self.max_megabytes is not None and not 0 < self.max_megabytes < 1e9:
            raise InputError(f"must be above 0 and below 1e9, not {self.max_megabytes:g}", argument="max_megabytes")
        self.read_options()  # checks the other fields
        if not 0 < self.validation_share < 1:
            raise InputError(f"must be between 0 and 1, not {self.validation_share}", argument="validation_share")

    def read_options(self) -> ReadOptions:
        """Return how each file is read."""
        return ReadOptions(
            self.text_column, self.errors, self.encoding, self.max_document_megabytes, unit=self.unit or "line"
        )

    def settings(self) -> dict[str, Any]:
        """Return the settings that shape the text, for records: encoding and unit only if they aren't the default."""
        encoding = codec_name(self.encoding)
        return {
            "text_column": named_columns(self.text_column),
            "max_megabytes": self.max_megabytes,
            "errors": self.errors,
            "validation_share": self.validation_share,
            **({} if encoding == "utf-8" else {"encoding": encoding}),
            **({} if self.unit in (None, "line") else {"unit": self.unit}),
        }
