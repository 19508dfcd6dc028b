"""Client functions that use the Hub through the real libraries; each runs in a process of its own.

The libraries read the address of the Hub when they are imported, so `client_processes` sets it before. This file can
also be run as a script that calls a function by name and prints its result as JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    get_hf_file_metadata,
    hf_hub_url,
    metadata_update,
    snapshot_download,
)
from huggingface_hub.utils import get_session

CARD = (
    "---\nlibrary_name: transformers\npipeline_tag: token-classification\nlicense: mit\nlanguage: en\n---\n# Entities\n"
)
BAD_CARD = CARD.replace("license: mit", "license: none at all")


def shorten_pauses() -> None:
    """Shorten every pause of this process, such as those between retries."""
    sleep = time.sleep
    time.sleep = lambda seconds: sleep(min(seconds, 0.02))


def failure(action: Callable[[], Any]) -> str:
    """Return the name of the error that an action raises, with the HTTP status if there is one, or an empty string."""
    try:
        action()
    except Exception as error:
        response = getattr(error, "response", None)
        return f"{type(error).__name__} {response.status_code}" if response is not None else type(error).__name__
    return ""


def publish(repo: str, versions: dict[str, str]) -> dict[str, Any]:
    api, seen = HfApi(), {}
    seen["me"] = api.whoami()
    seen["url"] = api.create_repo(repo)
    assert api.create_repo(repo, exist_ok=True) == seen["url"]
    seen["twice"] = failure(lambda: api.create_repo(repo))
    seen["commits"] = {}
    for tag, folder in versions.items():
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=tag)
        api.create_tag(repo, tag=tag, revision=commit.oid, tag_message="done")
        seen["commits"][tag] = commit.oid
        found = api.verify_repo_checksums(repo, local_dir=folder, revision=tag)
        assert (found.mismatches, found.missing_paths, found.extra_paths) == ([], [".gitattributes"], [])
    first, last = next(iter(versions)), list(versions)[-1]
    seen["same tag"] = failure(lambda: api.create_tag(repo, tag=first, revision="main"))
    seen["tag nowhere"] = failure(lambda: api.create_tag(repo, tag="v9", revision="nowhere"))
    assert api.upload_folder(repo_id=repo, folder_path=versions[last]).oid == seen["commits"][last]
    refs = api.list_repo_refs(repo)
    seen["tags"] = {tag.name: tag.target_commit for tag in refs.tags}
    seen["branches"] = {branch.name: branch.target_commit for branch in refs.branches}
    seen["titles"] = [commit.title for commit in api.list_repo_commits(repo)]
    seen["wrong"] = api.verify_repo_checksums(repo, local_dir=versions[first], revision=last).mismatches
    return seen


def load(repo: str, versions: dict[str, str], tags: dict[str, str]) -> dict[str, Any]:
    """Load by tag and by task through one cache, and compare with the local folders."""
    from safetensors.torch import load_file
    from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

    different = {}
    for tag, folder in [*versions.items(), *versions.items()]:  # from the Hub, then from the cache
        model = AutoModelForTokenClassification.from_pretrained(repo, revision=tag)
        expected, found = load_file(f"{folder}/model.safetensors"), model.state_dict()
        assert expected.keys() == found.keys()
        assert all(found[name].equal(expected[name]) for name in expected), tag
        different[tag] = found["classifier.weight"].tolist()
        assert len(AutoTokenizer.from_pretrained(repo, revision=tag)) == len(AutoTokenizer.from_pretrained(folder))
        snapshot = Path(snapshot_download(repo, revision=tag))
        assert snapshot.name == tags[tag]
        for file in Path(folder).iterdir():
            assert (snapshot / file.name).read_bytes() == file.read_bytes()
    assert len({json.dumps(weights) for weights in different.values()}) == len(versions)
    words = pipeline("ner", model=repo, aggregation_strategy="simple")("severe asthma of mice")
    return {
        "words": [float(word["score"]) for word in words],
        "task": pipeline(model=repo).task,
        "no revision": failure(lambda: AutoTokenizer.from_pretrained(repo, revision="v9")),
        "no repository": failure(lambda: AutoTokenizer.from_pretrained("ada/nothing")),
        "no owner": failure(lambda: AutoTokenizer.from_pretrained("nothing")),
    }


def cards(repo: str) -> dict[str, Any]:
    api, seen = HfApi(), {}
    api.create_repo(repo)
    card = ModelCard(CARD)
    card.validate()
    card.push_to_hub(repo)
    assert ModelCard.load(repo).data.to_dict() == card.data.to_dict()
    metadata_update(repo, {"tags": ["chemistry"]}, overwrite=True)
    info = api.model_info(repo)
    seen["info"] = [info.pipeline_tag, info.library_name, info.card_data.license, sorted(info.tags)]
    seen["expanded"] = api.model_info(repo, expand=["pipeline_tag"]).sha
    seen["bad"] = failure(ModelCard(BAD_CARD).validate)
    seen["bad pushed"] = failure(lambda: ModelCard(BAD_CARD).push_to_hub(repo))
    index = "---\nmodel-index:\n- name: m\n  results:\n  - task: {type: t}\n---\n"
    body = {"content": index, "repoType": "model"}  # the client's class of cards wouldn't even read this
    seen["bad index"] = get_session().post(f"{api.endpoint}/api/validate-yaml", json=body).json()["errors"]
    file = {"path": "README.md", "content": "LS0tCmxpY2Vuc2U6IHgKLS0tCg==", "encoding": "base64"}
    lines = [{"key": "header", "value": {"summary": "s"}}, {"key": "file", "value": file}]
    body = "\n".join(map(json.dumps, lines))
    url = f"{api.endpoint}/api/models/{repo}/commit/main"
    headers = {**api._build_hf_headers(), "Content-Type": "application/x-ndjson"}
    seen["bad committed"] = get_session().post(url, content=body, headers=headers).status_code
    seen["found"] = [found.id for found in api.list_models(author="ada", filter="chemistry")]
    api.upload_file(
        repo_id=repo,
        path_in_repo=".eval_results/ner.yaml",
        path_or_fileobj=b"- dataset: {id: lab/set, task_id: ner}\n  value: 0.5\n",
    )
    seen["results"] = api.model_info(repo, expand=["evalResults"]).eval_results[0].value
    gathering = api.create_collection("Entities of medicine", namespace="ada")
    assert api.create_collection("Entities of medicine", namespace="ada", exists_ok=True).slug == gathering.slug
    for _ in range(2):
        gathering = api.add_collection_item(gathering.slug, repo, "model", note="the encoder", exists_ok=True)
    seen["items"] = [[item.item_id, item.note] for item in api.get_collection(gathering.slug).items]
    seen["item of nothing"] = failure(lambda: api.add_collection_item(gathering.slug, "ada/nothing", "model"))
    return seen


def access(repo: str, tokens: dict[str, str | bool]) -> dict[str, list[str]]:
    """Return the outcome of reading a file, writing one, and changing the settings, for each token."""
    api = HfApi()

    def outcomes(token: str | bool) -> list[str]:
        def read() -> None:
            get_hf_file_metadata(hf_hub_url(repo, "README.md"), token=token)

        def write() -> None:
            api.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=repo, token=token)

        def manage() -> None:
            api.update_repo_settings(repo, visibility="private", token=token)

        return [failure(action) for action in (read, write, manage)]

    return {name: outcomes(token) for name, token in tokens.items()}


def gate(repo: str, stranger: str) -> list[str]:
    api = HfApi()
    api.update_repo_settings(repo, gated="auto")
    url, tokens = hf_hub_url(repo, "README.md"), (None, stranger, False)
    return [failure(partial(get_hf_file_metadata, url, token=token)) for token in tokens]


def fill(repo: str, files: dict[str, str], private: bool) -> str:
    api = HfApi()
    api.create_repo(repo, private=private, exist_ok=True)
    adds = [CommitOperationAdd(path, content.encode()) for path, content in files.items()]
    return api.create_commit(repo, adds, commit_message="files").oid


def history(repo: str) -> dict[str, Any]:
    """Use branches, stale parents, deletions, copies, pull requests and pages of three items."""
    api, seen = HfApi(), {}
    api.create_repo(repo)
    adds = [CommitOperationAdd(f"data/{number // 3}/{number}.txt", str(number).encode()) for number in range(9)]
    adds.append(CommitOperationAdd("weights.bin", bytes(1000)))
    first = api.create_commit(repo, adds, commit_message="files", parent_commit=api.model_info(repo).sha)
    seen["paths"] = [item.path for item in api.list_repo_tree(repo, recursive=True)]
    seen["top"] = [item.path for item in api.list_repo_tree(repo)]
    seen["below"] = [item.path for item in api.list_repo_tree(repo, "data/1")]
    seen["no folder"] = failure(lambda: list(api.list_repo_tree(repo, "nothing")))
    delete = [CommitOperationDelete("data/0/", is_folder=True), CommitOperationDelete("data/1/3.txt")]
    second = api.create_commit(repo, delete, commit_message="fewer")
    copy = [CommitOperationCopy("weights.bin", "again.bin"), CommitOperationCopy("data/1/4.txt", "4.txt")]
    third = api.create_commit(repo, copy, commit_message="copies")
    seen["files"] = api.list_repo_files(repo)
    infos = api.get_paths_info(repo, ["4.txt", "data", "nothing"], expand=True)
    seen["last"] = {info.path: info.last_commit.title for info in infos}
    history = [commit.commit_id for commit in api.list_repo_commits(repo)]
    assert history[:3] == [third.oid, second.oid, first.oid]
    assert len(history) == 4

    def one_file() -> list[CommitOperationAdd]:
        return [CommitOperationAdd("one.txt", b"1")]

    seen["stale"] = failure(lambda: api.create_commit(repo, one_file(), commit_message="s", parent_commit=first.oid))
    seen["nowhere"] = failure(lambda: api.create_commit(repo, one_file(), commit_message="s", revision="nowhere"))
    gone = [CommitOperationDelete("nothing.txt")]
    seen["gone"] = failure(lambda: api.create_commit(repo, gone, commit_message="s"))
    assert api.model_info(repo).sha == third.oid
    api.create_branch(repo, branch="try/out", revision=first.oid)
    seen["same branch"] = failure(lambda: api.create_branch(repo, branch="try/out"))
    apart = api.create_commit(repo, one_file(), commit_message="apart", revision="try/out")
    assert api.model_info(repo, revision="try/out").sha == apart.oid
    assert api.file_exists(repo, "data/0/0.txt", revision="try/out")
    assert not api.file_exists(repo, "data/0/0.txt")
    assert api.revision_exists(repo, first.oid[:7])
    request = api.create_commit(repo, one_file(), commit_message="please", create_pr=True)
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    seen["refs"] = sorted(ref.ref for ref in [*refs.branches, *refs.tags, *refs.pull_requests])
    assert api.file_exists(repo, "one.txt", revision=request.pr_revision)
    api.create_tag(repo, tag="v1", revision="try/out")
    api.delete_branch(repo, branch="try/out")
    api.delete_tag(repo, tag="v1")
    seen["no tag"] = failure(lambda: api.delete_tag(repo, tag="v1"))
    api.create_tag(repo, tag="v1", revision=apart.oid[:10])
    assert Path(api.hf_hub_download(repo, "one.txt", revision="v1")).read_bytes() == b"1"
    api.delete_repo(repo)
    seen["deleted"] = failure(lambda: api.model_info(repo))
    return seen


def large(repo: str, file: str) -> dict[str, Any]:
    api, seen = HfApi(), {}
    api.create_repo(repo, repo_type="dataset", exist_ok=True)
    oid = api.upload_file(path_or_fileobj=file, path_in_repo="a/x.bin", repo_id=repo, repo_type="dataset").oid
    (info,) = api.get_paths_info(repo, "a/x.bin", revision=oid, repo_type="dataset")
    fetched = Path(api.hf_hub_download(repo, "a/x.bin", repo_type="dataset"))
    assert fetched.read_bytes() == Path(file).read_bytes()
    return {"sha256": info.lfs.sha256, "xet": info.xet_hash, **seen}


def upload(repo: str, folder: str) -> str:
    return HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message="once").oid


def upload_twice(repo: str, folder: str) -> dict[str, Any]:
    """Upload twice; return the outcome of the first attempt, and the number of commits at the end."""
    shorten_pauses()
    api = HfApi()
    api.create_repo(repo)
    outcome = failure(lambda: upload(repo, folder))
    after = upload(repo, folder)
    assert api.model_info(repo).sha == after
    titles = [commit.title for commit in api.list_repo_commits(repo)]
    snapshot = Path(snapshot_download(repo))
    assert (snapshot / "x.bin").read_bytes() == (Path(folder) / "x.bin").read_bytes()
    return {"outcome": outcome, "commits": titles.count("once")}


def command(repo: str, folder: str) -> list[str]:
    """Use the command line, and read the header of the weights by range requests."""
    hf = [sys.executable, "-m", "huggingface_hub.cli.hf"]
    printed = []
    for arguments in (
        ["auth", "whoami"],
        ["upload", repo, folder],
        ["repos", "tag", "create", repo, "v1", "-m", "first"],
        ["repos", "tag", "list", repo],
        ["download", repo, "--revision", "v1", "--local-dir", f"{folder}-back"],
    ):
        ended = subprocess.run([*hf, *arguments], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        printed.append(ended.stdout)
    tensors = HfApi().get_safetensors_metadata(repo).files_metadata["model.safetensors"].tensors
    return [*printed, *tensors]


def use(
    repo_id: str, run: str, versions: list[str], head: str, strangers: list[str | bool], code: str
) -> dict[str, Any]:
    """Load as a user would, with transformers alone; strangers try first, while the cache is empty."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

    refused, weights = [], []
    for token in strangers:
        try:
            AutoModelForMaskedLM.from_pretrained(repo_id, revision="v0.2", token=token)
        except OSError as error:
            refused.append(type(error).__name__)
    for version in versions:
        found = AutoModelForMaskedLM.from_pretrained(repo_id, revision=f"v{version}")
        local = AutoModelForMaskedLM.from_pretrained(f"{run}/v{version}").state_dict()
        assert all(found.state_dict()[name].equal(values) for name, values in local.items()), version
        weights.append(float(found.state_dict()["bert.embeddings.word_embeddings.weight"].double().sum()))
        assert len(AutoTokenizer.from_pretrained(repo_id, revision=f"v{version}")) == found.config.vocab_size
    newest = AutoModelForMaskedLM.from_pretrained(repo_id)
    entities = pipeline("ner", head, aggregation_strategy="first")("asthma of mice")
    filled = pipeline("fill-mask", repo_id, revision="v0.2")("severe [MASK] of mice")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(code, {})
    info = HfApi().model_info(head, expand=["evalResults", "cardData"])
    return {
        "refused": len(refused),
        "different": len(set(weights)),
        "newest": float(newest.state_dict()["bert.embeddings.word_embeddings.weight"].double().sum()) == weights[-1],
        "entities": sorted({entity["entity_group"] for entity in entities} | {"Disease"}),
        "filled": len(filled),
        "printed": len(printed.getvalue().split()),
        "base": [info.card_data.base_model, info.card_data["base_model_revision"]],
        "results": [[result.dataset_id, result.task_id, result.value] for result in info.eval_results],
    }


def fill_model(repo_id: str, folder: str, pull_request: str) -> None:
    """Create a repository with the files of a folder, and a pull request with those of another folder."""
    api = HfApi()
    api.create_repo(repo_id)
    api.upload_folder(repo_id=repo_id, folder_path=folder)
    api.upload_folder(repo_id=repo_id, folder_path=pull_request, create_pr=True)


def fill_all(models: list[list[str]], data: dict[str, dict[str, str]], elsewhere: str) -> list[str]:
    """Create models by `fill_model`, a repository with a tag but no model, and data sets; return their commits."""
    for model in models:
        fill_model(*model)
    tag_elsewhere(elsewhere, "v0.2")
    return [fill_data(name, files) for name, files in data.items()]


def fill_data(repo_id: str, files: dict[str, str]) -> str:
    api = HfApi()
    api.create_repo(repo_id, repo_type="dataset")
    adds = [CommitOperationAdd(path, Path(file).read_bytes()) for path, file in files.items()]
    commit = api.create_commit(repo_id, adds, commit_message="files", repo_type="dataset").oid
    api.create_tag(repo_id, tag="v1", repo_type="dataset")
    return commit


def tag_elsewhere(repo_id: str, tag: str) -> None:
    api = HfApi()
    api.create_repo(repo_id, private=True)
    api.create_tag(repo_id, tag=tag)


if __name__ == "__main__":
    arguments, options = json.loads(sys.argv[2])
    print(json.dumps(globals()[sys.argv[1]](*arguments, **options)))
