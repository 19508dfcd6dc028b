"""The model that computes only masked positions, and attention within documents, compared with the plain model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from helpers import build_tiny_bert
from transformers import BertConfig, BertForMaskedLM, BertTokenizer, Trainer, TrainingArguments

from bioptimus_hf.errors import InputError
from bioptimus_hf.pretraining.callback import CurriculumCallback
from bioptimus_hf.pretraining.cuda_graphs import Replay
from bioptimus_hf.pretraining.masking import BioptimusDataCollator, MaskingStrategy, mask_once
from bioptimus_hf.pretraining.modeling import VARLEN, BertForMaskedPositions, set_dropout
from bioptimus_hf.pretraining.packing import tokenize_and_pack

TEXTS = [
    "Aspirin binding in severe asthma patients was induced by protein expression.",
    "The mice of the renal cells.",
    "Bronchoconstriction (acute) is a disease with cancer therapy on the gene, for patients and failure.",
]


def both(**changes: Any) -> tuple[BertForMaskedLM, BertForMaskedPositions]:
    """The plain model and ours, initialised with the same seed."""
    models = []
    for kind in (BertForMaskedLM, BertForMaskedPositions):
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        models.append(kind(BertConfig(vocab_size=120, **sizes | changes)).eval())
    return models[0], models[1]


def rows_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(7, 120, (8, 32), generator=generator)
    return ids, torch.where(torch.rand(ids.shape, generator=generator) < 0.3, ids, -100)


def masked_head(tokenizer: BertTokenizer) -> BertForMaskedPositions:
    plain = build_tiny_bert(len(tokenizer))
    model = BertForMaskedPositions(plain.config)
    model.load_state_dict(plain.state_dict())
    return model.eval()


def test_the_head_on_masked_positions_gives_the_plain_models_loss_and_gradient(tokenizer: BertTokenizer) -> None:
    blocks = tokenize_and_pack(Dataset.from_dict({"text": TEXTS * 12}), tokenizer, max_length=16)
    plain, ours = build_tiny_bert(len(tokenizer)), masked_head(tokenizer)
    batch = BioptimusDataCollator(tokenizer, MaskingStrategy("word", 0.2, True))(
        [{"input_ids": block} for block in blocks["input_ids"]]
    )
    expected = plain(**batch).loss
    got = ours(**batch).loss
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    got.backward()
    for (name, reference), mine in zip(plain.named_parameters(), ours.parameters(), strict=True):
        assert torch.allclose(reference.grad, mine.grad, rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize("items", [None, 0, torch.tensor(0), torch.tensor(7)])
def test_a_batch_without_masked_positions_has_no_loss_and_no_gradient(tokenizer: BertTokenizer, items: Any) -> None:
    model = masked_head(tokenizer)
    labels = torch.full((1, 3), -100)
    loss = model(input_ids=torch.tensor([[4, 40, 5]]), labels=labels, num_items_in_batch=items).loss
    loss.backward()
    assert loss.item() == 0
    # Zeros, not nothing: several processes wait for the gradient of every parameter.
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("padding", [0, 5])
def test_a_packed_document_is_read_as_if_alone(tokenizer: BertTokenizer, padding: int) -> None:
    """A row that begins in the middle of a document, holds a whole one, and ends in the middle of a third."""
    first, second, third = tokenizer(TEXTS)["input_ids"]
    parts = [first[9:], second, third[:11]]
    row = torch.tensor([[number for part in parts for number in part]])
    masked = row.clone()
    labels = torch.full_like(row, -100)
    for place in (1, 4, len(parts[0]) + 3, row.shape[1] - 2):
        labels[0, place] = row[0, place]
        masked[0, place] = tokenizer.mask_token_id
    attention = torch.ones_like(row)
    filler = (0, padding)
    batch = {
        "input_ids": torch.nn.functional.pad(masked, filler, value=tokenizer.pad_token_id),
        "attention_mask": torch.nn.functional.pad(attention, filler),
        "labels": torch.nn.functional.pad(labels, filler, value=-100),
    }
    model, plain = masked_head(tokenizer), build_tiny_bert(len(tokenizer))
    model.document_start = tokenizer.cls_token_id

    def losses() -> torch.Tensor:
        """Losses of each masked position alone."""
        alone = []
        for place in (batch["labels"][0] != -100).nonzero()[:, 0]:
            labels = torch.full_like(batch["labels"], -100)
            labels[0, place] = batch["labels"][0, place]
            alone.append(model(**{**batch, "labels": labels}).loss)
        return torch.stack(alone)

    got = losses()
    begin, expected = 0, []
    for part in parts:
        place = slice(begin, begin + len(part))
        loss = torch.nn.functional.cross_entropy(plain(masked[:, place]).logits[0], labels[0, place], reduction="none")
        expected.append(loss[labels[0, place] != -100])
        begin += len(part)
    assert torch.allclose(got, torch.cat(expected), atol=1e-5)
    model.document_start = None
    assert not torch.allclose(losses(), got, atol=1e-5)


def test_rows_with_different_numbers_of_masked_positions(tokenizer: BertTokenizer) -> None:
    """None, one, and all of a row that is longer than the padding of masked positions."""
    plain, ours = build_tiny_bert(len(tokenizer)), masked_head(tokenizer)
    ids = torch.randint(7, len(tokenizer), (3, 70), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100)
    labels[1, 69] = 9
    labels[2] = ids[2]
    expected, got = plain(ids, labels=labels).loss, ours(ids, labels=labels).loss
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)
    expected.backward()
    got.backward()
    for (name, reference), mine in zip(plain.named_parameters(), ours.parameters(), strict=True):
        assert torch.allclose(reference.grad, mine.grad, rtol=1e-4, atol=1e-7), name


@pytest.mark.parametrize(
    "shape", [{}, {"num_hidden_layers": 1}, {"chunk_size_feed_forward": 8}, {"attn_implementation": "eager"}], ids=str
)
def test_it_is_initialised_and_saved_as_the_plain_model(shape: dict[str, Any], tmp_path: Path) -> None:
    plain, ours = both(**shape)
    ids, labels = rows_and_labels()
    for (name, one), other in zip(plain.named_parameters(), ours.parameters(), strict=True):
        assert torch.equal(one, other), name  # the initial weights
    losses = [model(ids, labels=labels).loss for model in (plain, ours)]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-5)
    gradients = [
        torch.autograd.grad(loss, list(model.parameters())) for loss, model in zip(losses, (plain, ours), strict=True)
    ]
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-7) for one, other in zip(*gradients, strict=True))
    plain.save_pretrained(tmp_path / "plain")
    ours.save_pretrained(tmp_path / "ours")
    files = [{file.name: file.read_bytes() for file in (tmp_path / kind).iterdir()} for kind in ("plain", "ours")]
    assert files[0] == files[1]


def test_a_graph_gives_its_gradient_twice_and_rejects_a_second_derivative() -> None:
    _, model = both()
    model.evaluates_logits = False
    ids, labels = rows_and_labels()
    parameters = list(model.parameters())
    loss = model(ids, labels=labels).loss
    first, second = (torch.autograd.grad(loss, parameters, retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, parameters, create_graph=True)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_last_layer_drops_attention_too(attention: str) -> None:
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.5}
    _, model = both(num_hidden_layers=1, attn_implementation=attention, **dropout)
    ids, labels = rows_and_labels()
    different = [
        len({model.train(mode)(ids, labels=labels).loss.item() for _ in range(2)}) == 2 for mode in (True, False)
    ]
    assert different == [True, False]


def test_a_compiled_model_gives_the_same_loss_and_gradient() -> None:
    """The code after the count of masked positions is a separate graph, traced here but not optimised."""
    _, model = both()
    ids, labels = rows_and_labels()
    compiled = torch.compile(model, backend="aot_eager")
    for wanted in (labels, torch.full_like(labels, -100), labels.roll(1, 0)):
        results = []
        for one in (model, compiled):
            loss = one(input_ids=ids, labels=wanted, num_items_in_batch=torch.tensor(70)).loss
            results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
        assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("precision", "scale"), [(torch.bfloat16, 1.0), (torch.float16, 1.0), (torch.float16, 2.0**16)]
)
def test_in_half_precision_the_gradient_is_the_plain_models_to_its_precision(
    tokenizer: BertTokenizer, precision: torch.dtype, scale: float
) -> None:
    """Also if the loss is scaled, so that small gradients don't underflow in fp16."""
    plain, ours = build_tiny_bert(len(tokenizer)), masked_head(tokenizer)
    ids = torch.randint(7, len(tokenizer), (8, 32), generator=torch.Generator().manual_seed(0))
    labels = torch.where(torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) < 0.3, ids, -100)
    exact = torch.autograd.grad(plain(ids, labels=labels).loss, list(plain.parameters()))
    with torch.autocast("cpu", dtype=precision):
        losses = [model(ids, labels=labels).loss for model in (plain, ours)]
    errors = []
    for loss, model in zip(losses, (plain, ours), strict=True):
        found = torch.autograd.grad(loss * scale, list(model.parameters()))
        errors.append(sum(((a / scale - b) ** 2).sum() for a, b in zip(found, exact, strict=True)) ** 0.5)
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=2e-3)
    assert errors[1] < 1.5 * errors[0]


def attention_by_loop(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
) -> torch.Tensor:
    """What PyTorch's `varlen_attn` computes, one sequence at a time."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert (len(query), len(key)) == (cu_seq_q[-1], cu_seq_k[-1])
    parts = []
    for asking, place in zip(pairwise(cu_seq_q.tolist()), pairwise(cu_seq_k.tolist()), strict=True):
        assert asking[1] - asking[0] <= max_q
        assert place[1] - place[0] <= max_k
        its_query = query[slice(*asking)].transpose(0, 1)
        its_key, its_value = (states[slice(*place)].transpose(0, 1) for states in (key, value))
        weights = (its_query @ its_key.mT * scale).softmax(-1)
        parts.append((weights @ its_value).transpose(0, 1))
    return torch.cat(parts)


@pytest.mark.parametrize("masked", [0, 0.01, 0.3, 1])
@pytest.mark.parametrize("padding", [0, 5])
def test_concatenated_documents_give_the_loss_and_gradient_of_masks(
    monkeypatch: pytest.MonkeyPatch, masked: float, padding: int
) -> None:
    """As on a GPU, with a slow attention: no masked position, some, all; rows that end in padding."""
    monkeypatch.setattr("bioptimus_hf.pretraining.modeling.varlen_attn", attention_by_loop)
    _, model = both()
    ids, _ = rows_and_labels()
    generator = torch.Generator().manual_seed(1)
    model.document_start = 4
    ids = torch.where(torch.rand(ids.shape, generator=generator) < 0.1, 4, ids)
    labels = torch.where(torch.rand(ids.shape, generator=generator) < masked, ids, -100)
    attention_mask = torch.ones_like(ids)
    if padding:
        labels[1:4, -padding:], attention_mask[1:4, -padding:] = -100, 0
    results = []
    for concatenates in (False, True):
        monkeypatch.setattr(BertForMaskedPositions, "_concatenates_documents", lambda self, value=concatenates: value)
        model.set_attn_implementation(VARLEN)
        loss = model(ids, attention_mask=attention_mask, labels=labels).loss
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    assert (results[0][0] > 0) == (masked > 0)
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-7) for one, other in zip(*results, strict=True))


def test_varlen_attention_needs_half_precision_and_no_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, masks keep attention within documents."""
    calls: list[torch.dtype] = []

    def attend(query: torch.Tensor, *arguments: Any, **more: Any) -> torch.Tensor:
        calls.append(query.dtype)
        return attention_by_loop(query, *arguments, **more)

    monkeypatch.setattr("bioptimus_hf.pretraining.modeling.varlen_attn", attend)
    plain, model = both()
    model.set_attn_implementation(VARLEN)
    ids, labels = rows_and_labels()
    assert model(ids, labels=labels).loss.item() == pytest.approx(plain(ids, labels=labels).loss.item(), rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.train()(ids, labels=labels)
        assert calls == []
        set_dropout(model, 0)
        loss = model(ids, labels=labels).loss
    assert calls == [torch.bfloat16] * 2
    assert loss.item() == pytest.approx(plain(ids, labels=labels).loss.item(), rel=2e-3)


def recorded(module: torch.nn.Module, sample: tuple[torch.Tensor, ...]) -> None:
    """What `torch.cuda.make_graphed_callables` does to a module, except for the graphs.

    Inputs, outputs and gradients have their places in memory, which each pass writes anew, and what is given out are
    these places themselves.
    """
    forward, parameters = module.forward, list(module.parameters())
    output = forward(*sample)
    gradients = [torch.zeros_like(values) for values in (sample[0], *parameters)]
    place = output.detach().clone()

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(context: Any, *inputs: torch.Tensor) -> torch.Tensor:
            for place_in_memory, given in zip(sample, inputs, strict=False):
                assert place_in_memory.shape == given.shape
                place_in_memory.data.copy_(given)
            with torch.enable_grad():
                context.output = forward(*sample)
            place.copy_(context.output.detach())
            return place.detach()

        @staticmethod
        def backward(context: Any, outer: torch.Tensor) -> Any:
            for gradient, new in zip(
                gradients, torch.autograd.grad(context.output, [sample[0], *parameters], outer), strict=True
            ):
                gradient.copy_(new)
            first, *others = [gradient.detach() for gradient in gradients]
            return first, None, *others

    module.forward = lambda *inputs: Recorded.apply(*inputs, *parameters)


def with_and_without_replay(
    model: BertForMaskedPositions,
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
    precision: Callable[[], AbstractContextManager[Any]],
) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Loss and gradients after each batch, two per step, if layers are run and if they are replayed."""
    results: list[list[list[torch.Tensor]]] = [[], []]
    for found, replay in zip(results, (None, Replay()), strict=True):
        model.replay = replay
        for number, (ids, labels) in enumerate(batches):
            if number % 2 == 0:
                model.zero_grad()
            with precision():
                loss = model(ids, labels=labels).loss
            loss.backward()
            loss = loss.detach()  # otherwise the graph would be alive during the next recording
            found.append([loss, *(parameter.grad.clone() for parameter in model.parameters())])
    return zip(*results, strict=True)


def test_what_is_replayed_gives_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, without graphs: batches with few documents, with too many for the recording, of another shape.

    Two to a step, so that the gradient of the second is added to that of the first.
    """
    monkeypatch.setattr("bioptimus_hf.pretraining.modeling.varlen_attn", attention_by_loop)
    monkeypatch.setattr("torch.cuda.make_graphed_callables", recorded)
    monkeypatch.setattr(BertForMaskedPositions, "_concatenates_documents", lambda self: True)
    _, model = both(num_hidden_layers=3)
    set_dropout(model.train(), 0)
    model.set_attn_implementation(VARLEN)
    model.document_start = 4
    ids, labels = rows_and_labels()
    ids = torch.where(ids % 30 == 0, 4, ids)
    many = torch.full_like(ids, 4)
    batches = [(ids, labels), (ids.roll(1, 0), labels), (many, labels), (ids[:4], labels[:4])] * 2
    batches += [(ids, labels), (many, labels), (ids, labels), (ids.roll(1, 1), labels)]
    for one, other in with_and_without_replay(model, batches, nullcontext):
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(one, other, strict=True))


def test_replicas_without_parameters_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """nn.DataParallel makes such replicas."""
    config = BertConfig(vocab_size=99, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    model = BertForMaskedPositions(config).eval()
    ids = torch.arange(20).reshape(2, 10)
    expected = model(ids, labels=ids).loss
    monkeypatch.setattr(BertForMaskedPositions, "parameters", lambda self, recurse=True: iter(()))
    assert torch.equal(expected, model(ids, labels=ids).loss)


@pytest.mark.parametrize("training", [False, True])
def test_logits_are_those_of_the_plain_model(training: bool) -> None:
    """In evaluation, and in training without labels, which is how a Trainer with label smoothing calls its model."""
    plain, ours = both(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    ids, labels = rows_and_labels()
    attention = (torch.arange(32) < torch.arange(25, 33)[:, None]).long()
    batch = {"input_ids": ids, "attention_mask": attention, "position_ids": torch.arange(32).flip(0).expand(8, -1)}
    expected = plain(**batch, labels=labels)
    got = ours(**batch, labels=labels)
    torch.testing.assert_close(got.loss, expected.loss)
    real = attention.bool()
    torch.testing.assert_close(got.logits[real], expected.logits[real])
    ours.train(training)
    without = ours(**batch)
    assert without.loss is None
    torch.testing.assert_close(without.logits[real], expected.logits[real])
    if training:
        assert ours(**batch, labels=labels).logits is None
    halved = ours.eval()(**batch, labels=labels, num_items_in_batch=2 * int((labels != -100).sum())).loss
    torch.testing.assert_close(2 * halved, expected.loss)
    ours.evaluates_logits = False
    assert ours(**batch, labels=labels).logits is None


def test_logits_of_packed_documents_are_those_of_each_document_alone(tokenizer: BertTokenizer) -> None:
    plain, ours = build_tiny_bert(len(tokenizer)).eval(), masked_head(tokenizer)
    ours.document_start = tokenizer.cls_token_id
    start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
    first, second = [start, 20, 21, end], [start, 22, 23, 24, end]
    packed = ours(torch.tensor([first + second])).logits[0]
    alone = [plain(torch.tensor([document])).logits[0] for document in (first, second)]
    torch.testing.assert_close(packed, torch.cat(alone))


def test_a_stock_trainer_evaluates_and_smooths_labels(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    """With metrics and label smoothing, losses and metrics are those of the plain model."""
    rows = [{"input_ids": [2, *range(20 + shift, 27 + shift), 3]} for shift in range(8)]
    data = mask_once(Dataset.from_list(rows), tokenizer)
    found = []
    for model in (build_tiny_bert(len(tokenizer)), masked_head(tokenizer)):
        set_dropout(model, 0.0)
        arguments = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=4, max_steps=2, label_smoothing_factor=0.1, report_to="none",
            use_cpu=True, disable_tqdm=True, save_strategy="no", logging_steps=1,
        )  # fmt: skip
        trainer = Trainer(
            model, arguments, BioptimusDataCollator(tokenizer), data, data,
            preprocess_logits_for_metrics=lambda logits, labels: logits.argmax(-1),
            compute_metrics=lambda given: {"right": float((given.predictions == given.label_ids).sum())},
        )  # fmt: skip
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        metrics = trainer.evaluate()
        found.append((losses, metrics["eval_loss"], metrics["eval_right"]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    assert found[0][1:] == pytest.approx(found[1][1:], rel=1e-4)


def test_adapters_train_as_on_the_plain_model(tokenizer: BertTokenizer, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    rows = Dataset.from_list([{"input_ids": [2, *range(10 + shift, 22 + shift), 3]} for shift in range(16)])
    losses = []
    for model in (build_tiny_bert(len(tokenizer)), masked_head(tokenizer)):
        set_dropout(model, 0.0)
        torch.manual_seed(0)
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query", "value", "dense"]))
        arguments = TrainingArguments(
            str(tmp_path), per_device_train_batch_size=4, max_steps=4, learning_rate=1e-2, report_to="none",
            use_cpu=True, disable_tqdm=True, save_strategy="no", logging_steps=1,
        )  # fmt: skip
        collator = BioptimusDataCollator(tokenizer)
        trainer = Trainer(
            adapted, arguments, collator, rows, callbacks=[CurriculumCallback(collator, export_dir=tmp_path / "out")]
        )
        with pytest.raises(InputError, match="versions of a PEFT model would lack its adapters"):
            trainer.train()
        trainer = Trainer(adapted, arguments, collator, rows, callbacks=[CurriculumCallback(collator)])
        trainer.train()
        losses.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
