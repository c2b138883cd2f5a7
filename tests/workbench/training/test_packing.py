"""Packed sequences do not see one another, and nothing is learned that was not learned before."""

import pytest
import torch
from tests.workbench.tiny import write_jsonl, write_recipe

from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training.run import finetune, trainer_of


@pytest.fixture
def recipe(content, tmp_path):
    words = ("cat ", "dog ", "fox ", "mat ", "log ", "the ")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Say {word}"},
                {"role": "assistant", "content": word * (1 + number)},
            ]
        }
        for number, word in enumerate(words * 2)
    ]
    content["data"] = {"train": str(write_jsonl(tmp_path / "chat.jsonl", rows)), "holdout_every": 4}
    content["training"].update(max_length=256, max_steps=2, per_device_train_batch_size=1)
    return write_recipe(tmp_path / "recipe.yaml", content)


def packed_batch(recipe, **changes):
    trainer, data = trainer_of(read_recipe(recipe, ["training.packing=true"]))
    batch = next(iter(trainer.get_train_dataloader()))
    return trainer.model.eval(), {**batch, **changes}, list(data.train)


def cut(batch):
    """The sequences of a packed batch, where positions begin again."""
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    return list(zip(starts, [*starts[1:], batch["input_ids"].shape[1]], strict=True))


def test_a_packed_sequence_is_computed_as_if_it_were_alone(recipe):
    model, batch, rows = packed_batch(recipe)
    spans = cut(batch)
    assert len(spans) > 1
    with torch.no_grad():
        together = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[0]
        blurred = model(input_ids=batch["input_ids"]).logits[0]  # without positions, one long sequence
        for start, stop in spans:
            ids = batch["input_ids"][:, start:stop]
            assert ids[0].tolist() in [row["input_ids"] for row in rows]
            alone = model(input_ids=ids).logits[0]
            torch.testing.assert_close(together[start:stop], alone, rtol=1e-4, atol=1e-5)
            if start:
                assert not torch.allclose(blurred[start:stop], alone, rtol=1e-4, atol=1e-5)


def test_what_is_learned_is_what_was(recipe):
    _, batch, rows = packed_batch(recipe)
    learned = {tuple(row["input_ids"]): row["labels"] for row in rows}
    for start, stop in cut(batch):
        labels = batch["labels"][0, start:stop].tolist()
        expected = learned[tuple(batch["input_ids"][0, start:stop].tolist())]
        assert labels[0] == -100  # predicted by the sequence before it, or by nothing
        assert labels[1:] == expected[1:]


def test_held_out_loss_is_the_same_packed_or_not(recipe, tmp_path):
    before = [
        finetune(read_recipe(recipe, [f"training.packing={packing}", f"output_dir={tmp_path / packing}"]))["before"]
        for packing in ("true", "false")
    ]
    assert before[0]["tokens"] == before[1]["tokens"]
    assert before[0]["loss"] == pytest.approx(before[1]["loss"], rel=1e-5)
