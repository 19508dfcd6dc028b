"""Read tasks: those of BLURB, your own in files, on the Hub (on loopback), and from YAML."""

from __future__ import annotations

import gzip
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import resources
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_from_disk
from head_results import (
    GOOD,
    write_task,
)
from hub import Hub
from huggingface_hub import constants

from bioptimus_hf.corpus import hub as corpus_hub
from bioptimus_hf.corpus.conll import read_conll
from bioptimus_hf.errors import InputError
from bioptimus_hf.models import Source
from bioptimus_hf.ner.scores import entity_scores
from bioptimus_hf.ner.tasks import (
    BLURB_NER,
    JNLPBA_TYPES,
    NER_TASKS,
    NerTask,
    label_names,
    load_ner,
    pin_source,
    read_task,
    tags_of,
    task_files,
    task_identity,
)

SAMPLE = Path(str(resources.files("bioptimus_hf") / "sample" / "ner"))
NAMES = ["I-Disease", "O", "B-Chemical", "I-Chemical", "B-Disease"]  # in an order that the code never produces
ROWS = {"tokens": [["Aspirin", "acid", "helps"], [], ["No\tpain"]], "ner_tags": [[2, 3, 1], [], [0]]}


def test_real_sets_have_the_published_numbers_of_mentions(data_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = {}
    for name in BLURB_NER:
        dataset = load_ner(name, data_dir / "ner")
        labels = label_names(dataset["train"])
        assert len(labels) == 3, labels  # a single type each, even in JNLPBA
        found[name] = [sum(tag.startswith("B-") for row in tags_of(part) for tag in row) for part in dataset.values()]
    assert found == {
        "bc5-chem": [5203, 5347, 5385],
        "bc5-disease": [4182, 4246, 4424],
        "ncbi-disease": [5134, 787, 960],
        "bc2gm": [15197, 3061, 6325],
        "jnlpba": [46750, 4551, 8662],
    }
    assert caplog.text.count("as published") == 4
    assert "bc5-disease: mentions train 4182, validation 4246, test 4424: a widely used copy" in caplog.text


def test_other_data_is_not_called_blurb(data_dir: Path, tmp_path: Path) -> None:
    files = task_files("ncbi-disease", data_dir / "ner")
    texts = {split: file.read_text(encoding="utf-8") for split, file in files.items()}
    folder = write_task(
        tmp_path / "NCBI-disease",
        texts["train"].replace("B-Disease", "O", 1).replace("I-Disease", "O"),
        texts["validation"],
        texts["test"],
    )
    with pytest.raises(
        InputError, match=r"this is not ncbi-disease: it has mentions train 5133.*the published data has train 5134"
    ):
        load_ner("ncbi-disease", tmp_path)
    assert load_ner(NerTask("mine"), folder)["train"].num_rows == 5424


@pytest.mark.parametrize(
    "task", [NerTask("bc2gm"), replace(BLURB_NER["bc2gm"], mentions=(1, 1, 1)), NerTask("jnlpba", "JNLPBA")]
)
def test_no_other_task_takes_the_name_of_a_blurb_task(task: NerTask, tmp_path: Path) -> None:
    write_task(tmp_path)
    with pytest.raises(InputError, match=rf"{task.name} is a BLURB task .*: choose another name"):
        load_ner(task, tmp_path)


def test_the_sample_is_a_task() -> None:
    dataset = load_ner(NerTask("sample"), SAMPLE)
    assert list(dataset) == ["train", "validation", "test"]
    assert dataset.column_names["test"] == ["tokens", "ner_tags"]
    assert label_names(dataset["train"]) == ["O", "B-Chemical", "I-Chemical", "B-Disease", "I-Disease"]
    assert entity_scores(tags_of(dataset["test"]), tags_of(dataset["test"]))["support"] == 171
    for split, file in task_files(NerTask("sample"), SAMPLE).items():
        lines = [line.split("\t") for line in file.read_text(encoding="utf-8").split("\n") if line]
        assert [word for words in dataset[split]["tokens"] for word in words] == [word for word, _ in lines]
        assert [tag for tags in tags_of(dataset[split]) for tag in tags] == [tag for _, tag in lines]


def test_a_task_may_be_a_sub_folder_or_the_files_themselves(tmp_path: Path) -> None:
    kinds = [f"Type{number:02d}" for number in range(16)]
    text = "".join(f"word\tB-{kind}\n" for kind in kinds) + "\n"
    write_task(tmp_path / "many", text, text, text)
    for task, source in ((NerTask("m", "many"), tmp_path), (NerTask("m"), tmp_path / "many")):
        assert label_names(load_ner(task, source)["test"])[1::2] == [f"B-{kind}" for kind in kinds]


def test_merged_types_become_a_single_type(tmp_path: Path) -> None:
    write_task(tmp_path, "a\tB-X\nb\tI-X\nc\tB-Y\nd\tO\n\n", "a\tB-Y\n\n", "a\tB-X\n\n")
    dataset = load_ner(NerTask("m", merged_type="Any"), tmp_path)
    assert tags_of(dataset["train"]) == [["B-Any", "I-Any", "B-Any", "O"]]
    assert label_names(dataset["train"]) == ["O", "B-Any", "I-Any"]


@pytest.mark.parametrize("split", ["dev", "test"])
def test_a_type_that_does_not_occur_in_train_is_refused(tmp_path: Path, split: str) -> None:
    write_task(tmp_path, **{split: "Pain\tO\nhurts\tB-Disease\n\n"})
    with pytest.raises(InputError, match=rf"{split}\.tsv, line 2: tag 'B-Disease' .* known types are Chemical"):
        load_ner(NerTask("mine"), tmp_path)


def test_a_type_that_the_task_does_not_name_is_refused(tmp_path: Path) -> None:
    write_task(tmp_path)
    with pytest.raises(InputError, match=r"train\.tsv, line 1: tag 'B-Chemical' .* known types are Disease"):
        load_ner(NerTask("mine", types=("Disease",)), tmp_path)


def test_unknown_tasks_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown task 'bc5chem': give one of bc5-chem, "):
        load_ner("bc5chem", tmp_path)
    with pytest.raises(InputError, match=r"no train\.tsv for task bc2gm in .*BC2GM or "):
        load_ner("bc2gm", tmp_path)
    (tmp_path / "train.tsv").write_text(GOOD)
    with pytest.raises(InputError, match=r"no dev\.tsv or devel\.tsv or valid\.tsv or .* in "):
        load_ner(NerTask("mine"), tmp_path)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_split_without_a_mention_is_named(split: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_task(tmp_path, **{split: "word\tO\n"})
    problem = f"{tmp_path / split}.tsv contains no entities: every tag is O"
    with pytest.raises(InputError, match=problem):
        load_ner(NerTask("mine"), tmp_path)
    load_ner(NerTask("mine", types=("Chemical",)), tmp_path)  # for a joint head, it may be meant
    assert problem in caplog.messages


@pytest.mark.parametrize("names", [("train.tsv", "valid.tsv", "test.tsv"), ("train.conll", "devel.iob2", "test.bio")])
def test_common_names_of_files_are_found(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in (*names, "train_dev.tsv", "train.txt", "test.txt"):  # BioBERT adds train_dev; .txt is often plain text
        (tmp_path / name).write_text(GOOD)
    assert [file.name for file in task_files(NerTask("mine"), tmp_path).values()] == list(names)
    assert load_ner(NerTask("mine"), tmp_path)["validation"].num_rows == 1


def test_text_files_are_found_if_there_are_no_others(tmp_path: Path) -> None:
    for name in ("train.txt", "val.txt.gz", "test.txt"):
        content = GOOD.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert load_ner(NerTask("mine"), tmp_path)["validation"].num_rows == 1


@pytest.mark.parametrize(
    ("more", "says"),
    [("devel.tsv", "validation, dev.tsv and devel.tsv"), ("test.conll", "test, test.conll and test.tsv")],
)
def test_two_files_for_a_split_are_an_error(more: str, says: str, tmp_path: Path) -> None:
    write_task(tmp_path)
    (tmp_path / more).write_text(GOOD)
    with pytest.raises(InputError, match=f"{tmp_path} has several files for {says}: move all but one away"):
        load_ner(NerTask("mine"), tmp_path)


def test_documents_beside_conll_files_are_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_task(tmp_path)
    for name in ("train.jsonl", "dev.parquet", "train.txt"):  # text files often hold plain text
        (tmp_path / name).write_text("")
    load_ner(NerTask("mine"), tmp_path)
    (message,) = [message for message in caplog.messages if "left out" in message]
    assert message == f"{tmp_path}: left out, because these splits also have CoNLL files: train.jsonl, dev.parquet"


def test_a_file_beside_the_folder_of_a_task_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_task(tmp_path / "mine")
    (tmp_path / "mine.jsonl").write_text("")
    load_ner(NerTask("mine"), tmp_path)
    says = f"{tmp_path}: left out, because the folder mine has files for the task, too: mine.jsonl"
    assert caplog.messages.count(says) == 1


def test_the_folder_of_a_task_has_its_name(tmp_path: Path) -> None:
    write_task(tmp_path / "mine")
    for source in (tmp_path, tmp_path / "mine"):
        assert task_files(NerTask("mine"), source)["train"] == tmp_path / "mine" / "train.tsv"
        assert load_ner(NerTask("mine"), source)["train"].num_rows == 1


UNTYPED = "Aspirin\tB\nhelps\tO\n\nsevere\tB\npain\tI\n\n"


@pytest.mark.parametrize(
    ("task", "kind"),
    [
        (NerTask("mine"), "mine"),
        (NerTask("mine", types=("Disease",)), "Disease"),
        (NerTask("mine", merged_type="Any"), "Any"),
        (NerTask("mine", types=("Disease", "Gene"), merged_type="Any"), "Any"),
    ],
)
def test_tags_without_a_type_get_that_of_the_task(
    task: NerTask, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_task(tmp_path, *[UNTYPED] * 3)
    dataset = load_ner(task, tmp_path)
    assert tags_of(dataset["test"]) == [[f"B-{kind}", "O"], [f"B-{kind}", f"I-{kind}"]]
    assert label_names(dataset["train"]) == ["O", f"B-{kind}", f"I-{kind}"]
    assert f"train.tsv: tags without a type, read as {kind}: 3 (for example line 1, 'B')" in caplog.text


@pytest.mark.parametrize("task", [NerTask("my task"), NerTask("mine", types=("Disease", "Gene"))])
def test_tags_without_a_type_need_a_name(task: NerTask, tmp_path: Path) -> None:
    write_task(tmp_path, *[UNTYPED] * 3)
    with pytest.raises(InputError, match=r"train\.tsv, line 1: the tag 'B' has no type: name .*merged_type of a task"):
        load_ner(task, tmp_path)


def test_only_some_splits_may_have_types(tmp_path: Path) -> None:
    write_task(tmp_path, "a\tB-X\n\n", "a\tB\n\n", "a\tB-X\n\n")
    assert tags_of(load_ner(NerTask("mine"), tmp_path)["validation"]) == [["B-X"]]
    write_task(tmp_path, "a\tB\n\n", "a\tB\n\n", "a\tB-X\n\n")
    with pytest.raises(InputError, match=r"test\.tsv, line 1: tag 'B-X' has an unknown type: known types are mine"):
        load_ner(NerTask("mine"), tmp_path)


def test_the_type_of_untyped_tags_is_part_of_the_identity(tmp_path: Path) -> None:
    write_task(tmp_path, *[UNTYPED] * 3)
    tasks = [NerTask("mine"), NerTask("other"), NerTask("mine", types=("X",)), NerTask("mine", types=("Y",))]
    found = [task_identity(task, tmp_path, load_ner(task, tmp_path))["train"] for task in tasks]
    assert len(set(found)) == 4


def test_biobert_folders_are_tasks(cases_dir: Path, tmp_path: Path) -> None:
    for task, kind in ((NerTask("mine"), "mine"), (NerTask("mine", merged_type="Disease"), "Disease")):
        dataset = load_ner(task, cases_dir / "biobert_folder")
        assert [tags_of(part) for part in dataset.values()] == [
            [["O", "O", f"B-{kind}", f"I-{kind}", "O"], ["O"] * 3]
        ] * 3


def test_blurb_tasks_are_read_without_types(data_dir: Path, tmp_path: Path) -> None:
    """As BioBERT distributes them."""
    for split, file in task_files("ncbi-disease", data_dir / "ner").items():
        content = file.read_text(encoding="utf-8").replace("-Disease\n", "\n")
        (tmp_path / {"validation": "devel.tsv"}.get(split, f"{split}.tsv")).write_text(content, encoding="utf-8")
    typed, untyped = load_ner("ncbi-disease", data_dir / "ner"), load_ner("ncbi-disease", tmp_path)
    assert all(untyped[split][:] == typed[split][:] for split in typed)


def type_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    return [message for message in messages if "has a single sentence" not in message]


def test_types_are_listed_with_their_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    write_task(tmp_path, "a\tB-X\nb\tB-Y\n\n" * 3, "a\tB-X\n\n", "a\tB-Y\n\n")
    load_ner(NerTask("mine"), tmp_path)
    assert [message for message in caplog.messages if "by type: " in message] == [
        "mine, train: 3 sentences, mentions by type: X 3, Y 3",
        "mine, validation: 1 sentence, mentions by type: X 1, Y 0",
        "mine, test: 1 sentence, mentions by type: X 0, Y 1",
    ]
    assert not type_warnings(caplog)


@pytest.mark.parametrize(
    ("types", "warning"),
    [
        ({"Disease": 2000, "D": 1}, "the type D is rare (1 in all, and 2002 Disease): is it an error?"),
        ({"Disease": 2000, "Gene": 1}, "the type Gene is rare (1 in all, and 2002 Disease): is it an error?"),
        ({"Disease": 100, "Diseas": 3}, "the type Diseas is rare (3 in all, and 102 Disease): is it an error?"),
        (
            {"disease": 9, "Disease": 100},
            "the types disease (9 mentions in all) and Disease (102) differ only in case or p",
        ),
        (
            {"cell_type": 50, "cell-type": 40, "Disease": 50},
            "the types cell-type (40 mentions in all) and cell_type (50) diff",
        ),
        ({"Disease": 100, "Gene": 3}, ""),
        ({"Disease": 1, "D": 1}, ""),
        ({"protein": 100, "protein_complex": 30}, ""),
    ],
)
def test_types_that_look_like_errors_are_named(
    types: dict[str, int], warning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = "".join(f"a\tB-{kind}\n\n" * count for kind, count in types.items())
    kind = "Disease" if "Disease" in types else "protein"
    write_task(tmp_path, train, *[f"a\tB-{kind}\n\n"] * 2)
    load_ner(NerTask("mine"), tmp_path)
    found = type_warnings(caplog)
    assert len(found) == bool(warning)
    assert not warning or found[0].startswith(f"mine: {warning}")
    caplog.clear()
    load_ner(NerTask("mine", merged_type="Any"), tmp_path)
    assert not type_warnings(caplog)


def test_a_type_that_the_training_set_lacks_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_task(tmp_path, test="a\tB-Gene\n\n")
    load_ner(NerTask("mine", types=("Chemical", "Gene")), tmp_path)
    assert type_warnings(caplog) == ["mine: the training set has no Gene: a head can't learn it"]


def test_hub_rows_may_have_other_schemes(
    serve: Callable[[DatasetDict], list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    names = ["S-Disease", "O", "B-Chemical", "E-Chemical", "I-Chemical"]
    serve(splits(**{name: rows(names=names) for name in ("train", "validation", "test")}))
    assert tags_of(load_ner(NerTask("mine"), "lab/set")["test"]) == [["B-Chemical", "I-Chemical", "O"], ["B-Disease"]]
    assert "lab/set, test: tags of other schemes, converted to IOB2: 2 (for example row 0, 'E-Chemical')" in caplog.text
    names = ["U", "O", "B", "L", "I"]
    serve(splits(**{name: rows(names=names) for name in ("train", "validation", "test")}))
    assert tags_of(load_ner(NerTask("mine"), "lab/set")["test"]) == [["B-mine", "I-mine", "O"], ["B-mine"]]
    tasks = NerTask("mine"), NerTask("other")
    found = [task_identity(task, "lab/set", load_ner(task, "lab/set"))["test"] for task in tasks]
    assert found[0] != found[1]


def rows(content: dict[str, Any] = ROWS, names: list[str] = NAMES) -> Dataset:
    features = Features(tokens=List(Value("string")), ner_tags=List(ClassLabel(names=names)))
    return Dataset.from_dict(content, features=features)


def splits(**changed: Dataset | None) -> DatasetDict:
    parts = {"train": rows(), "validation": rows(), "test": rows(), **changed}
    return DatasetDict({name: part for name, part in parts.items() if part is not None})


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[DatasetDict], list[Any]]:
    """Replace the Hub client, and record which data set and commit it is asked for."""

    def serve(dataset: DatasetDict) -> list[Any]:
        asked: list[Any] = []

        def load_dataset(name: str, *, revision: str | None, split: None) -> DatasetDict:
            asked.append((name, revision))
            return dataset

        def find_files(name: str, patterns: list[str]) -> Source:
            name, _, revision = name.partition("@")
            return Source("", f"{name}@commit-of-{revision or 'main'}".replace("commit-of-commit-of-", "commit-of-"))

        monkeypatch.setattr(corpus_hub, "load_dataset", load_dataset)
        monkeypatch.setattr(corpus_hub, "find_files", find_files)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        return asked

    return serve


CLIENT = """
import json, sys
from huggingface_hub import HfApi
from bioptimus_hf.ner.tasks import NerTask, label_names, load_ner, pin_source, tags_of, task_identity
repo, folder = sys.argv[1:]
api = HfApi()
api.create_repo(repo, repo_type="dataset")
first = api.upload_folder(repo_id=repo, folder_path=folder, repo_type="dataset").oid
later = {"path_or_fileobj": f"{folder}/data/test.parquet", "path_in_repo": "data/train.parquet"}
last = api.upload_file(**later, repo_id=repo, repo_type="dataset").oid
found = [load_ner(NerTask("mine"), name) for name in (repo, f"{repo}@{first}")]
print(json.dumps({
    "rows": [[part.num_rows for part in parts.values()] for parts in found],
    "labels": label_names(found[0]["test"]),
    "words": list(found[0]["test"]["tokens"]),
    "tags": tags_of(found[0]["test"]),
    "pinned": [pin_source(name) == f"{repo}@{commit}" for name, commit in ((repo, last), (f"{repo}@{first}", first))],
    "identity": task_identity("x", f"{repo}@{first}", found[1])["test"] == f"name:{repo}@{first}:test",
}))
"""


def test_a_hub_data_set_is_pinned_to_a_commit(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, part in splits(train=rows({"tokens": [["a", "b"]] * 5, "ner_tags": [[2, 4]] * 5})).items():
        part.to_parquet(tmp_path / "data" / f"{split}.parquet")
    command = [sys.executable, "-c", CLIENT, "ada/set", str(tmp_path)]
    with Hub() as hub:
        # By default the library reports each download to another server.
        environment = {**hub.environment(token=hub.token("ada")), "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert not hub.leaks
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout) == {
        "rows": [[2, 2, 2], [5, 2, 2]],
        "labels": ["O", "B-Chemical", "I-Chemical", "B-Disease", "I-Disease"],
        "words": [["Aspirin", "acid", "helps"], ["No pain"]],
        "tags": [["B-Chemical", "I-Chemical", "O"], ["B-Disease"]],
        "pinned": [True, True],
        "identity": True,
    }


def test_rows_of_a_hub_data_set_are_read_like_lines_of_a_file(
    serve: Callable[[DatasetDict], list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    asked = serve(splits())
    dataset = load_ner(NerTask("mine", merged_type="Any", mentions=(2, 2, 2)), "lab/set@refs/pr/1")
    assert asked == [("lab/set", "commit-of-refs/pr/1")]
    assert tags_of(dataset["train"]) == [
        ["B-Any", "I-Any", "O"],
        ["B-Any"],
    ]  # without the empty sentence, and I- repaired
    assert (
        "lab/set@refs/pr/1, train: I- tags that begin an entity (as in IOB1), read as B-: 1 (for example row 2"
        in caplog.text
    )
    serve(splits())
    with pytest.raises(InputError, match="not mine: it has mentions train 2, validation 2, test 2, but the published"):
        load_ner(NerTask("mine", mentions=(2, 2, 3)), "lab/set")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"validation": None}, "lab/set has no split 'validation': it has train, test"),
        ({"test": Dataset.from_dict({"text": ["a"]})}, r"lab/set, test: expected the columns `tokens` \(strings\) and"),
        (
            {"test": Dataset.from_dict({"tokens": [["a"]], "ner_tags": [[1]]})},
            r"expected the columns .* `ner_tags` \(class labels\), found",
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
        ({"test": rows().cast_column("tokens", List(Value("binary")))}, r"`tokens` \(strings\) and"),
        ({"test": rows({"tokens": [["a"]], "ner_tags": [[-100]]})}, "row 0: a tag is not one of the 5 class labels"),
        ({"test": rows(names=["I-Pain", *NAMES[1:]])}, "row 2: tag 'I-Pain' has an unknown type: known types are Chem"),
        ({"train": rows(names=["Pain", *NAMES[1:]])}, "lab/set, train, row 2: unknown tag 'Pain'"),
        (
            {"train": rows({"tokens": [["a"]], "ner_tags": [[1]]})},
            "lab/set, train contains no entities: every tag is O",
        ),
        ({"train": rows({"tokens": [[]], "ner_tags": [[]]})}, "lab/set, train contains no sentences"),
    ],
)
def test_unusable_data_sets_are_refused(
    serve: Callable[[DatasetDict], list[Any]], changed: dict[str, Dataset | None], says: str
) -> None:
    serve(splits(**changed))
    with pytest.raises(InputError, match=says) as caught:
        load_ner(NerTask("mine"), "lab/set")
    assert "\n" not in str(caught.value)


def test_unavailable_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lab/nothing: not a local .*folder and not available on the Hub"):
        load_ner(NerTask("mine"), "lab/nothing")
    with pytest.raises(InputError, match=r"no train\.tsv for task mine in "):
        load_ner(NerTask("mine"), tmp_path / "nothing")


def test_the_identity_of_a_hub_data_set_is_its_name_and_commit(serve: Callable[[DatasetDict], list[Any]]) -> None:
    serve(splits())
    for source, commit in (("lab/set", "commit-of-main"), ("lab/set@v2", "commit-of-v2")):
        pinned = pin_source(source)
        assert pinned == f"lab/set@{commit}"
        assert task_identity("x", pinned, load_ner(NerTask("x"), pinned)) == {
            split: f"name:lab/set@{commit}:{split}" for split in ("train", "validation", "test")
        }


def test_the_identity_of_a_task_contains_types_that_only_the_task_names(
    serve: Callable[[DatasetDict], list[Any]],
) -> None:
    """The order of the types numbers the labels, so the same data with another order is other data."""
    sample = load_ner(NerTask("sample"), SAMPLE)
    files = task_identity(NerTask("sample"), SAMPLE, sample)
    assert all(identity.startswith("sha256:") for identity in files.values())
    named = NerTask("sample", types=tuple(reversed([name[2:] for name in label_names(sample["train"])[1::2]])))
    assert len(named.types or ()) > 1
    serve(splits())
    hub = task_identity(NerTask("x"), "lab/set", load_ner(NerTask("x"), "lab/set"))
    for source, plain in ((SAMPLE, files), ("lab/set", hub)):
        reordered = task_identity(named, source, load_ner(named, source))
        assert reordered == {
            split: f"{identity} O B-Disease I-Disease B-Chemical I-Chemical" for split, identity in plain.items()
        }


def test_offline_only_the_pinned_commit_of_a_data_set_is_used(
    serve: Callable[[DatasetDict], list[Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Offline, `datasets` loads the newest copy in its cache, no matter which revision was asked for."""

    def in_cache(folder: Path) -> DatasetDict:
        splits().save_to_disk(folder)
        found = load_from_disk(folder)
        assert isinstance(found, DatasetDict)
        return found

    serve(in_cache(tmp_path / "commit-of-other"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="lab/set: commit commit-of-main is not in the cache: load it once without"):
        load_ner(NerTask("mine"), "lab/set")
    serve(in_cache(tmp_path / "commit-of-main"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_ner(NerTask("mine"), "lab/set")["test"].num_rows == 2


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
        ("- name", "a task is a mapping with `name` and, optionally, folder, types, "),
        ("folder: x", "a task is a mapping with `name`"),
        ("{name: x, type: y}", "unknown key type; a task has name, folder, types"),
        ("{name: 3}", "name must be a string, not 3"),
        ("{name: x/y}", "a task can't be called 'x/y'"),
        ("{name: ..}", "a task can't be called '..'"),
        ("{name: x, merged_type: any one}", "task x: a type can't be called 'any one'"),
        ("{name: x, types: [a, b-]}", "task x: a type can't be called 'b-'"),
        ("{name: x, types: [a, a]}", "task x: a type occurs twice"),
        ("{name: x, types: Disease}", "types must be a list of names, not 'Disease'"),
        ("{name: x, types: []}", "types must be a list of names"),
        ("{name: x, mentions: [1, 2]}", "mentions must be three numbers (train, validation, test)"),
        ("{name: x, mentions: [1, 2, yes]}", "mentions must be a list of numbers"),
        ("{name: x, source: }", "source must be a string, not None"),
    ],
)
def test_invalid_yaml_is_refused(tmp_path: Path, content: str, says: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(InputError) as caught:
        read_task(file)
    assert says in str(caught.value)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_missing_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mine\.yaml can't be read"):
        read_task(tmp_path / "mine.yaml")


def test_jnlpba_with_its_five_types(data_dir: Path) -> None:
    dataset = load_ner("jnlpba-types", data_dir / "ner")
    assert label_names(dataset["test"])[1::2] == ["B-DNA", "B-RNA", "B-cell_line", "B-cell_type", "B-protein"]
    assert [sum(tag[0] == "B" for row in tags_of(part) for tag in row) for part in dataset.values()] == [
        46750,
        4551,
        8662,
    ]
    assert JNLPBA_TYPES.name not in BLURB_NER
    assert {**BLURB_NER, "jnlpba-types": JNLPBA_TYPES} == NER_TASKS


def test_the_two_disease_sets_share_no_test_sentence(data_dir: Path) -> None:
    """So cross-tests between them are fair."""

    def keys(task: str, split: str) -> set[str]:
        sentences = read_conll(task_files(task, data_dir / "ner")[split])
        texts = ("".join(filter(str.isalnum, "".join(words))).lower() for words, _ in sentences)
        return {text for text in texts if len(text) >= 40}

    for one, other in permutations(("bc5-disease", "ncbi-disease")):
        assert len(keys(other, "test")) > 800
        assert not keys(other, "test") & (keys(one, "train") | keys(one, "validation"))
