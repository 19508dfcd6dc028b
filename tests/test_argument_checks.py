"""Walk the public API: arguments that are taken for something else give an error that names them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict, IterableDataset
from helpers import build_tiny_bert, build_tiny_head, build_tiny_tokenizer, tiny_vocabulary
from transformers import PreTrainedModel, TrainingArguments

import bioptimus_hf
from bioptimus_hf.argument_checks import check_call
from bioptimus_hf.errors import InputError

UNCHECKED = {
    "Run", "Corpus", "PretrainingArguments",  # filled from the command line; a corpus may be a single file
    "Document", "Entity",  # made by the million
    "VocabularyDiff", "Finding", "PublishedVersion",  # results
    "BertForMaskedPositions",  # made by transformers
    # called by our own loops
    *(f"BioptimusDataCollator.{name}" for name in ("begin", "strategy_at", "follow", "for_evaluation")),
    "CurriculumCallback.masking_of", "CurriculumLoop.step", "HeadOptions.seeds_from",
}  # fmt: skip
ALIASES = ("Context", "Initializer", "MinimumScore", "Policy", "What")
"""Names of Literals, which the functions check themselves."""
COLUMNS = {"text": ["a"], "document": [0], "token": ["a"], "start": [0], "end": [1], "input_ids": [[1]]}
COLLECTIONS = ("Iterable[", "Sequence[", "Collection[", "list[", "tuple[", "Mapping[")


def samples() -> dict[str, Any]:
    """A valid value for each annotation that a required argument may have."""
    tokenizer, data = build_tiny_tokenizer(), Dataset.from_dict(COLUMNS)
    query = bioptimus_hf.ContextQuery(["asthma"], tokenizer)
    collator = bioptimus_hf.BioptimusDataCollator(tokenizer)
    model = build_tiny_bert(len(tiny_vocabulary()))
    return {
        "PreTrainedTokenizerBase": tokenizer,
        "Dataset": data,
        "DatasetDict": DatasetDict(train=data),
        "PreTrainedModel": model,
        "BertForMaskedLM": model,
        "BertForMaskedPositions": model,
        "ContextQuery": query,
        "BioptimusDataCollator": collator,
        "Run": bioptimus_hf.Run("nowhere"),
        "Corpus": bioptimus_hf.Corpus(["nowhere"]),
        "TrainingArguments": TrainingArguments("nowhere", use_cpu=True),
        "str": "nowhere",
        "Path": Path("nowhere"),
        "int": 5,
        "HeadOptions": bioptimus_hf.HeadOptions(tasks=["nothing"]),
        "PackageOptions": bioptimus_hf.PackageOptions("nowhere", "nothing-yet", "mit"),
        "PretrainingOptions": bioptimus_hf.PretrainingOptions(),
        "MaskingStrategy": bioptimus_hf.MaskingStrategy("token", 0.15, corrupt=True),
        "Accelerator": Accelerator(cpu=True),
        "Initializer": "subtoken_mean",
    }


def callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    """The public functions, constructors and methods."""
    for name in sorted({*bioptimus_hf.__all__} - UNCHECKED):
        public = getattr(bioptimus_hf, name)
        if inspect.isclass(public):
            if not issubclass(public, Exception):
                yield name, public
                for method, function in vars(public).items():
                    whole = f"{name}.{method}"
                    ours = method.startswith(("_", "on_", "state", "load_")) or whole in UNCHECKED
                    if inspect.isfunction(function) and not ours:
                        yield whole, function
        elif callable(public):
            yield name, public


def mistakes(annotation: str) -> Iterator[Any]:
    """Values that are commonly passed in place of what an annotation says."""
    plain = annotation.replace(" | None", "")
    if "str |" not in plain and any(kind in plain for kind in COLLECTIONS):
        yield from ("small.txt",) if plain.startswith(("int |", "float |")) else ("small.txt", 5)
        if plain.count("[") > 1 and "str" in plain:
            yield {"a": "small"} if "Mapping" in plain else ["O", "B-Chemical"]
    elif plain in ("Dataset", "DatasetDict"):
        yield from ([{"text": "a"}], "small.txt", {"text": ["a"]})
    elif plain in ("PreTrainedTokenizerBase", "PreTrainedModel", "BertForMaskedLM", "BertForMaskedPositions"):
        yield from ("bert-base-uncased", Path("runs"), build_tiny_tokenizer() if "Tok" not in plain else object())
    elif plain in ("ContextQuery", "Run", "Corpus", "BioptimusDataCollator", "TrainingArguments"):
        yield from ("asthma", ["asthma"])
    elif plain == "int":
        yield "ten"
    elif plain in ("str | Path", "Path"):
        yield from (["a", "b"], 5)
    if " | None" not in annotation and annotation not in ("Any", "bool") and "Literal" not in annotation:
        yield None


CASES = [
    pytest.param(function, parameter.name, value, id=f"{name}-{parameter.name}-{number}")
    for name, function in callables()
    for parameter in inspect.signature(function).parameters.values()
    if isinstance(parameter.annotation, str) and parameter.kind is not parameter.VAR_KEYWORD
    if parameter.annotation not in ALIASES
    # Methods with plain values fail at once where these are wrong.
    if "." not in name or any(kind in parameter.annotation for kind in (*COLLECTIONS, "Dataset", "PreTrained"))
    for number, value in enumerate(mistakes(parameter.annotation))
]


@pytest.mark.parametrize(("function", "name", "value"), CASES)
def test_a_wrong_argument_is_named(function: Callable[..., Any], name: str, value: Any) -> None:
    valid = samples()
    arguments: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
            kind = str(parameter.annotation).partition(" |")[0]
            made = {} if kind.startswith("Mapping") else [] if kind.startswith(COLLECTIONS) else None
            arguments[parameter.name] = valid.get(kind, made)
    with pytest.raises(InputError, match=rf"^{name}(\[.*\])?: ") as caught:
        function(**arguments | {name: value})
    assert "\n" not in str(caught.value)


@check_call(data=("text",))
def example(
    words: list[str],
    *,
    data: Dataset | None = None,
    sets: Mapping[str, Iterable[str]] | None = None,
    rows: Sequence[Sequence[str]] = (),
    size: int = 1,
    share: float = 0.5,
    folder: str | Path = ".",
) -> list[str]:
    """Return the words."""
    return words


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"words": "small.txt"}, "words: is a single string: give a list"),
        ({"words": b"small"}, "words: is a single string: give a list"),
        ({"words": Path("small.txt")}, "words: must be a list, not a PosixPath"),
        ({"words": ["a", 3]}, "words[1]: must be a string, not 3"),
        ({"words": ["a", ["b"]]}, "words[1]: must be a string, not a list"),
        ({"words": None}, "words: must be a list, not None"),
        (
            {"words": Dataset.from_dict({"text": ["a"]})},
            "words: must be a list of strings, not a data set: give one of its columns, such as dataset['text']",
        ),
        ({"words": [], "rows": ["ab"]}, "rows[0]: is a single string: give a list"),
        ({"words": [], "sets": {"a": "small"}}, "sets['a']: is a single string: give a list"),
        ({"words": [], "sets": ["small"]}, "sets: must be a dictionary or None, not a list"),
        ({"words": [], "size": "ten"}, "size: must be a whole number, not 'ten'"),
        ({"words": [], "size": 1.5}, "size: must be a whole number, not 1.5"),
        ({"words": [], "share": "1"}, "share: must be a number, not '1'"),
        ({"words": [], "folder": ["a"]}, "folder: must be a string or a path, not a list"),
        ({"words": [], "data": [{"text": "a"}]}, "data: must be a data set or None, not a list: load it first"),
        (
            {"words": [], "data": DatasetDict()},
            "data: must be a data set or None, not a DatasetDict: give one of its splits",
        ),
        (
            {"words": [], "data": IterableDataset.from_generator(lambda: iter(()))},
            "data: must be a data set or None, not an IterableDataset: load it without streaming",
        ),
        (
            {"words": [], "data": Dataset.from_dict({"txt": [], "id": []})},
            "data: the data set needs a column 'text', and has txt, id",
        ),
    ],
)
def test_errors_say_what_is_wrong(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError) as caught:
        example(**arguments)
    assert str(caught.value) == error
    assert caught.value.argument == error.partition(":")[0]


def test_what_is_right_is_passed_on() -> None:
    texts = Dataset.from_dict({"text": ["a"]})
    assert example(("a", "b")) == ("a", "b")
    assert (
        example(texts["text"], data=texts, sets={"a": ["b"]}, rows=np.array([["a"]]), size=np.int64(3)) == texts["text"]
    )
    assert list(example(iter("ab"), share=1, folder=Path())) == ["a", "b"]  # not consumed by the check
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'words'"):
        example()
    with pytest.raises(TypeError, match="unexpected keyword argument 'word'"):
        example(word=[])


@pytest.mark.parametrize("wrap", [lambda model: torch.nn.DataParallel(model), lambda model: model])
def test_a_model_may_be_wrapped(wrap: Callable[[Any], Any]) -> None:
    @check_call()
    def use(model: PreTrainedModel) -> PreTrainedModel:
        return model

    model = wrap(build_tiny_head(layers=0))
    assert use(model) is model
