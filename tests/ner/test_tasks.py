"""Tasks of one's own: a data set of the Hub (on loopback), a YAML file, a name on the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from hub import Hub

from bioptimus_hf.corpus.conll import read_conll
from bioptimus_hf.errors import InputError
from bioptimus_hf.ner import tasks as ner
from bioptimus_hf.ner.tasks import (
    BLURB_NER,
    JNLPBA_TYPES,
    NER_TASKS,
    NerTask,
    label_names,
    load_ner,
    read_task,
    tags_of,
    task_files,
    task_identity,
)

SAMPLE = Path(str(resources.files("bioptimus_hf") / "sample" / "ner"))
NAMES = ["I-Disease", "O", "B-Chemical", "I-Chemical", "B-Disease"]  # in no order that could be ours by chance
ROWS = {"tokens": [["Aspirin", "acid", "helps"], [], ["No\tpain"]], "ner_tags": [[2, 3, 1], [], [0]]}


def rows(content: dict[str, Any] = ROWS, names: list[str] = NAMES) -> Dataset:
    features = Features(tokens=List(Value("string")), ner_tags=List(ClassLabel(names=names)))
    return Dataset.from_dict(content, features=features)


def splits(**changed: Dataset | None) -> DatasetDict:
    parts = {"train": rows(), "validation": rows(), "test": rows(), **changed}
    return DatasetDict({name: part for name, part in parts.items() if part is not None})


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[DatasetDict], list[Any]]:
    """Stand in for the Hub's client, and note what it is asked for."""

    def serve(dataset: DatasetDict) -> list[Any]:
        asked: list[Any] = []

        def load_dataset(name: str, revision: str | None) -> DatasetDict:
            asked.append((name, revision))
            return dataset

        monkeypatch.setattr(ner, "load_dataset", load_dataset)
        return asked

    return serve


CLIENT = """
import json, sys
from huggingface_hub import HfApi
from bioptimus_hf.ner.tasks import NerTask, label_names, load_ner, tags_of
repo, folder = sys.argv[1:]
api = HfApi()
api.create_repo(repo, repo_type="dataset")
first = api.upload_folder(repo_id=repo, folder_path=folder, repo_type="dataset").oid
later = {"path_or_fileobj": f"{folder}/data/test.parquet", "path_in_repo": "data/train.parquet"}
api.upload_file(**later, repo_id=repo, repo_type="dataset")
found = [load_ner(NerTask("mine"), name) for name in (repo, f"{repo}@{first}")]
print(json.dumps({
    "rows": [[part.num_rows for part in parts.values()] for parts in found],
    "labels": label_names(found[0]["test"]),
    "words": list(found[0]["test"]["tokens"]),
    "tags": tags_of(found[0]["test"]),
}))
"""


def test_data_set_of_the_hub_and_its_revision(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, part in splits(train=rows({"tokens": [["a", "b"]] * 5, "ner_tags": [[2, 4]] * 5})).items():
        part.to_parquet(tmp_path / "data" / f"{split}.parquet")
    command = [sys.executable, "-c", CLIENT, "ada/set", str(tmp_path)]
    with Hub() as hub:
        # By default the library also tells a server outside the Hub what was loaded.
        environment = {**hub.environment(token=hub.token("ada")), "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert not hub.leaks
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {
        "rows": [[2, 2, 2], [5, 2, 2]],
        "labels": ["O", "B-Chemical", "I-Chemical", "B-Disease", "I-Disease"],
        "words": [["Aspirin", "acid", "helps"], ["No pain"]],
        "tags": [["B-Chemical", "I-Chemical", "O"], ["B-Disease"]],
    }


def test_rows_of_the_hub_are_read_as_lines_of_a_file(
    serve: Callable[[DatasetDict], list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    asked = serve(splits())
    dataset = load_ner(NerTask("mine", merged_type="Any", mentions=(2, 2, 2)), "lab/set@refs/pr/1")
    assert asked == [("lab/set", "refs/pr/1")]
    assert tags_of(dataset["train"]) == [["B-Any", "I-Any", "O"], ["B-Any"]]  # no empty sentence, no I- first
    assert "lab/set@refs/pr/1, train: 1 I- tags continue nothing, read as B-" in caplog.text
    serve(splits())
    with pytest.raises(InputError, match="this is not mine: mentions are train 2, validation 2, test 2, published"):
        load_ner(NerTask("mine", mentions=(2, 2, 3)), "lab/set")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"validation": None}, "lab/set has no split 'validation': it has train, test"),
        ({"test": Dataset.from_dict({"text": ["a"]})}, r"lab/set, test: the columns `tokens` \(texts\) and"),
        (
            {"test": Dataset.from_dict({"tokens": [["a"]], "ner_tags": [[1]]})},
            r"`ner_tags` \(class labels\) are needed",
        ),
        ({"test": rows({"tokens": [["a", "b"]], "ner_tags": [[1]]})}, "lab/set, test, row 0: 2 tokens and 1 tags"),
        (
            {"test": rows({"tokens": [["a"], [" "]], "ner_tags": [[1], [1]]})},
            "lab/set, test, row 1: the token is empty",
        ),
        (
            {"test": rows({"tokens": [["a"], ["b", None]], "ner_tags": [[1], [1, 1]]})},
            "test, row 1: a token or a tag is",
        ),
        ({"test": rows({"tokens": [["a"], None], "ner_tags": [[1], None]})}, "test, row 1: a token or a tag is"),
        ({"test": rows({"tokens": [["a"]], "ner_tags": [[None]]})}, "test, row 0: a token or a tag is missing"),
        ({"test": rows().cast_column("tokens", List(Value("binary")))}, r"`tokens` \(texts\) and"),
        ({"test": rows({"tokens": [["a"]], "ner_tags": [[-100]]})}, "row 0: a tag is none of the 5 class labels"),
        ({"test": rows(names=["I-Pain", *NAMES[1:]])}, "row 2: tag 'I-Pain' is of an unknown type: known are Chem"),
        ({"train": rows(names=["S-Pain", *NAMES[1:]])}, "lab/set, train, row 2: unknown tag 'S-Pain'"),
        ({"train": rows({"tokens": [["a"]], "ner_tags": [[1]]})}, "lab/set, train holds no entity: every tag is O"),
        ({"train": rows({"tokens": [[]], "ner_tags": [[]]})}, "lab/set, train holds no sentence"),
    ],
)
def test_unusable_data_sets_are_refused(
    serve: Callable[[DatasetDict], list[Any]], changed: dict[str, Dataset | None], says: str
) -> None:
    serve(splits(**changed))
    with pytest.raises(InputError, match=says) as caught:
        load_ner(NerTask("mine"), "lab/set")
    assert "\n" not in str(caught.value)


def test_data_set_that_is_not_to_be_had(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="lab/nothing: neither a folder here nor a data set to be had from the Hub"):
        load_ner(NerTask("mine"), "lab/nothing")
    with pytest.raises(InputError, match=r"no train\.tsv for the task mine in "):
        load_ner(NerTask("mine"), tmp_path / "nothing")


def test_identity_of_a_data_set_is_its_content(serve: Callable[[DatasetDict], list[Any]]) -> None:
    def of(dataset: DatasetDict, source: str) -> dict[str, str]:
        serve(dataset)
        return task_identity("x", source, load_ner(NerTask("x"), source))

    first = of(splits(), "lab/set")
    assert first == of(splits(), "lab/copy@v2")
    assert first.keys() == {"train", "validation", "test"}
    other = of(splits(test=rows({"tokens": [["Pain"]], "ner_tags": [[4]]})), "lab/set")
    assert [split for split in first if first[split] != other[split]] == ["test"]
    renamed = [name.replace("Disease", "Pain") for name in NAMES]
    assert of(DatasetDict({split: rows(names=renamed) for split in first}), "lab/set")["test"] != first["test"]
    sample = load_ner(NerTask("sample"), SAMPLE)
    files = task_identity(NerTask("sample"), SAMPLE, sample)
    assert all(one.startswith("sha256:") for one in files.values())
    # The same files with types in another order, which number the labels, are other data.
    named = NerTask("sample", types=tuple(reversed([name[2:] for name in label_names(sample["train"])[1::2]])))
    assert len(named.types) > 1
    for one, other in zip(task_identity(named, SAMPLE, load_ner(named, SAMPLE)).values(), files.values(), strict=True):
        assert one.startswith(f"{other} O B-{named.types[0]} ")


# YAML


def test_a_yaml_file_is_a_task(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("train", "dev", "test"):
        (tmp_path / "data" / f"{name}.tsv").write_bytes((SAMPLE / f"{name}.tsv").read_bytes())
    file = tmp_path / "mine.yaml"
    file.write_text(
        "name: mine\nsource: data\ntypes: [Chemical, Disease]\nmerged_type: Any\nmentions: [591, 137, 171]\n"
    )
    task = read_task(file)
    assert task == NerTask("mine", "", ("Chemical", "Disease"), "Any", (591, 137, 171), source=str(tmp_path / "data"))
    counts = [
        sum(tag == "B-Any" for row in tags_of(part) for tag in row) for part in load_ner(task, task.source).values()
    ]
    assert counts == [591, 137, 171]
    file.write_text("{name: mine, source: lab/set@v1, folder: x}")
    assert read_task(file) == NerTask("mine", "x", source="lab/set@v1")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [", "is not YAML"),
        ("- name", "a task is a mapping with `name` and maybe folder, types, "),
        ("folder: x", "a task is a mapping with `name`"),
        ("{name: x, type: y}", "type is unknown; a task has name, folder, types"),
        ("{name: 3}", "name must be text, not 3"),
        ("{name: x/y}", "a task cannot be called 'x/y'"),
        ("{name: ..}", "a task cannot be called '..'"),
        ("{name: x, merged_type: any one}", "task x: a type cannot be called 'any one'"),
        ("{name: x, types: [a, b-]}", "task x: a type cannot be called 'b-'"),
        ("{name: x, types: [a, a]}", "task x: a type is given twice"),
        ("{name: x, types: Disease}", "types must be a list of names, not 'Disease'"),
        ("{name: x, types: []}", "types must be a list of names"),
        ("{name: x, mentions: [1, 2]}", "mentions must be three numbers, of train, validation, test"),
        ("{name: x, mentions: [1, 2, yes]}", "mentions must be a list of numbers"),
        ("{name: x, source: }", "source must be text, not None"),
    ],
)
def test_yaml_that_is_no_task_is_refused(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(InputError) as caught:
        read_task(file)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine\.yaml cannot be read: No such file"):
        read_task(tmp_path / "mine.yaml")


# Five types of JNLPBA


def test_types_of_jnlpba_by_name(data_dir: Path) -> None:
    dataset = load_ner("jnlpba-types", data_dir / "ner")
    assert label_names(dataset["test"])[1::2] == ["B-DNA", "B-RNA", "B-cell_line", "B-cell_type", "B-protein"]
    assert [sum(tag[0] == "B" for row in tags_of(part) for tag in row) for part in dataset.values()] == [
        46750,
        4551,
        8662,
    ]
    assert JNLPBA_TYPES.name not in BLURB_NER
    assert {**BLURB_NER, "jnlpba-types": JNLPBA_TYPES} == NER_TASKS


def test_the_two_sets_of_diseases_share_no_test_sentence(data_dir: Path) -> None:
    """So that a head of one may be scored on the other."""

    def keys(task: str, split: str) -> set[str]:
        sentences = read_conll(task_files(task, data_dir / "ner")[split])
        texts = ("".join(filter(str.isalnum, "".join(words))).lower() for words, _ in sentences)
        return {text for text in texts if len(text) >= 40}

    for one, other in permutations(("bc5-disease", "ncbi-disease")):
        assert len(keys(other, "test")) > 800
        assert not keys(other, "test") & (keys(one, "train") | keys(one, "validation"))
