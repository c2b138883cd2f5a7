"""A run is resumed on what it was started on, or the message says what is another now."""

import json
import shutil

import datasets
import numpy as np
import pytest
from tests.workbench.tiny import CHAT_TEMPLATE, make_tokenizer, write_jsonl, write_recipe
from tests.workbench.vision.tiny import CLASSES, make_pixels

from paca import PacaError
from paca.workbench.recipe.recipe import read_recipe
from paca.workbench.training import images, text
from paca.workbench.training.inputs import check_inputs, digest_of_rows, digest_of_tokens
from paca.workbench.training.run import finetune
from paca.workbench.training.run_folder import METRICS

pytestmark = pytest.mark.road("resume")


def conversation(number, answer="walks"):
    question = {"role": "user", "content": f"The fox {number} over the mat?"}
    return {"messages": [question, {"role": "assistant", "content": answer}]}


@pytest.fixture
def chats(content, tiny_model, tmp_path):
    """A recipe on files that are the test's own."""
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "chat.jinja").write_text(CHAT_TEMPLATE)
    write_jsonl(tmp_path / "train.jsonl", CHATS[:6])
    write_jsonl(tmp_path / "eval.jsonl", [conversation(8), conversation(9)])
    content["model"].update(name=str(tmp_path / "model"), chat_template=str(tmp_path / "chat.jinja"))
    content["data"] = {"train": str(tmp_path / "train.jsonl"), "eval": str(tmp_path / "eval.jsonl")}
    content["training"]["max_length"] = 96
    return read_recipe(write_recipe(tmp_path / "recipe.yaml", content))


def interrupt(recipe, module, monkeypatch):
    """Begin a run and stop it when the first figure is taken and nothing is trained yet."""

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            finetune(recipe)


def other_vocabulary(folder):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["fox"])  # an id that the model's embedding has no row for is never looked up here
    tokenizer.save_pretrained(folder / "model")


def write_rows(folder, name, rows):
    write_jsonl(folder / f"{name}.jsonl", rows)


CHATS = [conversation(number) for number in range(7)]
SAME_NUMBER = r"the training rows are as many \(6\), but not the same"
TOKENS = "the training sequences that the tokenizer makes of the same rows"
CHANGES = {
    "a row": (lambda folder: write_rows(folder, "train", [*CHATS[:5], conversation(5, "runs")]), SAME_NUMBER),
    "the order": (lambda folder: write_rows(folder, "train", CHATS[5::-1]), SAME_NUMBER),
    "one row more": (lambda folder: write_rows(folder, "train", CHATS), "the training rows were 6, now 7"),
    "held-out rows": (
        lambda folder: write_rows(folder, "eval", CHATS[:2]),
        r"the held-out rows are as many \(2\), but",
    ),
    "the tokenizer": (other_vocabulary, f"{TOKENS}.*; the held-out sequences that the tokenizer makes"),
    "the chat template": (
        lambda folder: (folder / "chat.jinja").write_text(CHAT_TEMPLATE.replace("You help", "You walk")),
        TOKENS,
    ),
}


def test_changed_text_is_not_resumed_on(chats, tmp_path, monkeypatch):
    interrupt(chats, text, monkeypatch)
    shutil.copytree(tmp_path, tmp_path / "as it was")
    for act, message in CHANGES.values():
        act(tmp_path)
        with pytest.raises(PacaError, match=rf"was started on something else: {message}.*Resume with what it was"):
            finetune(chats, resume=True)
        shutil.copytree(tmp_path / "as it was", tmp_path, dirs_exist_ok=True)
    assert not (tmp_path / "run" / METRICS).exists()


def test_the_same_text_is_resumed_on_wherever_it_lies_and_other_text_by_overwrite(chats, tmp_path, monkeypatch):
    interrupt(chats, text, monkeypatch)
    first = json.loads((tmp_path / "run" / "before.json").read_text())
    write_jsonl(tmp_path / "train.jsonl", CHATS[:6])  # a new time of writing
    assert finetune(chats, resume=True)["before"] == first
    write_jsonl(tmp_path / "eval.jsonl", [conversation(number, "jumps over") for number in (8, 9)])
    with pytest.raises(PacaError, match="the held-out rows are as many"):
        finetune(chats, resume=True)  # a finished run, whose figures are of the other rows
    assert finetune(chats, overwrite=True)["before"] != first


def save(path, pixels, labels, classes=CLASSES):
    arrays = {"train_images": pixels, "train_labels": labels, "test_images": pixels[:6] + 1, "test_labels": labels[:6]}
    np.savez(path, **arrays, class_names=np.array(classes))


PIXELS, LABELS = make_pixels(np.arange(24) % 3, np.random.default_rng(0)), np.arange(24) % 3
AT_20 = np.arange(24) == 20
OTHERS = "the classes are others"
IMAGE_CHANGES = {
    "pixels": (
        PIXELS + AT_20[:, None, None, None],
        LABELS,
        CLASSES,
        r"the training images are as many \(24\), but not",
    ),
    "a label": (PIXELS, LABELS * ~AT_20, CLASSES, r"the training images are as many \(24\), but not the same"),
    "held-out images": (np.roll(PIXELS, 3, 0), LABELS, CLASSES, ".*the held-out images are as many"),
    "fewer images": (PIXELS[:21], LABELS[:21], CLASSES, "the training images were 24, now 21"),
    "a class's name": (PIXELS, LABELS, ("dark", "lit", "red"), rf"{OTHERS} \(without 'bright', with 'lit'\)"),
    "one class more": (PIXELS, LABELS, (*CLASSES, "blue"), rf"{OTHERS} \(with 'blue'\)"),
    "the classes' order": (PIXELS, LABELS, CLASSES[::-1], rf"{OTHERS} \(in another order\)"),
}


@pytest.fixture
def pictures(image_content, tmp_path):
    save(tmp_path / "mine.npz", PIXELS, LABELS)
    image_content["data"] = {"train": str(tmp_path / "mine.npz"), "eval": str(tmp_path / "mine.npz")}
    return read_recipe(write_recipe(tmp_path / "recipe.yaml", image_content))


def test_changed_images_are_not_resumed_on(pictures, tmp_path, monkeypatch):
    interrupt(pictures, images, monkeypatch)
    for pixels, labels, classes, message in IMAGE_CHANGES.values():
        save(tmp_path / "mine.npz", pixels.astype(np.uint8), labels, classes)
        with pytest.raises(PacaError, match=f"was started on something else: {message}"):
            finetune(pictures, resume=True)
    save(tmp_path / "mine.npz", PIXELS, LABELS)
    assert finetune(pictures, resume=True)["steps"] == 8


def test_digests_tell_values_order_and_borders_apart():
    rows = [["a", "bc"], ["ab", "c"], ["bc", "a"], ["a"], [b"a", b"bc"], []]
    assert len({digest_of_rows(values)["digest"] for values in rows}) == len(rows)
    assert digest_of_rows([{"a": 1, "b": 2}]) == digest_of_rows([{"b": 2, "a": 1}])

    def tokens(*sequences):
        made = datasets.Dataset.from_list([{"input_ids": ids, "labels": ids} for ids in sequences])
        return digest_of_tokens(made)["digest"]

    assert len({tokens([1, 2], [3]), tokens([1], [2, 3]), tokens([3], [1, 2]), tokens([1, 2, 3])}) == 4
    rows = datasets.Dataset.from_list([{"input_ids": [number]} for number in range(9)])
    assert digest_of_tokens(rows.select([2, 3])) == digest_of_tokens(datasets.Dataset.from_list(rows.to_list()[2:4]))


def test_what_is_compared_is_kept_once(tmp_path):
    check_inputs(tmp_path, {"classes": ["a"]})
    check_inputs(tmp_path, {"classes": ["a"], "training rows": {"count": 1, "digest": "x"}})
    with pytest.raises(PacaError, match=r"the classes are others \(with 'b'\); the training rows were 1, now 2"):
        check_inputs(tmp_path, {"classes": ["a", "b"], "training rows": {"count": 2, "digest": "y"}})
    check_inputs(tmp_path, {"training rows": {"count": 1, "digest": "x"}})
