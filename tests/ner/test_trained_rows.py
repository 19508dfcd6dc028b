"""Training the rows that occur gives the weights of training them all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from architectures import TOKENIZERS, save_architecture
from transformers import AutoModelForTokenClassification

from bioptimus_hf.ner.trained_rows import can_train_rows, decay_with, train_rows


@pytest.mark.parametrize("name", TOKENIZERS)
def test_weights_are_those_of_training_all_rows(name: str, tmp_path: Path) -> None:
    """In all architectures; also after the state was saved in the middle and loaded later."""
    save_architecture(name, tmp_path)
    ids = torch.randint(5, 60, (2, 7), generator=torch.Generator().manual_seed(0))
    states, logits = [], []
    for few in (False, True):
        model = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
        whole = model.get_input_embeddings()
        assert can_train_rows(model)
        rows = train_rows(model, ids.flatten().tolist()) if few else None
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
        if rows:
            decay_with(rows, optimizer)
            assert len(rows.weight) < 15 < len(whole.weight)
        for step in range(3):
            if step == 2:
                model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})
            if rows:
                rows.train()  # dropout stays off
            optimizer.zero_grad()
            model(ids).logits.square().mean().backward()
            optimizer.step()
        model.eval()
        logits.append(model(torch.arange(5, 60)[None]).logits)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        if rows:
            model.set_input_embeddings(rows.restored())
            assert model.get_input_embeddings() is whole
            torch.testing.assert_close(model.state_dict(), states[-1])
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-3, atol=1e-4)
