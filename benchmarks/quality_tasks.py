"""What `quality.py` trains on: each task a pretrained model, batches for training, and two held-out sets.

Rates are chosen by the one held-out set, and methods are compared by the other, so that no method gains from a rate
that happens to suit what it is judged by. A third set is of what the model knew before: how much of it is forgotten.
"""

import dataclasses
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from paca import PacaError
from paca.tuner.layers.bnb_cpu import apply_cpu_workarounds
from paca.workbench.data.prepare import encode, prepare_data, read_data
from paca.workbench.data.section import DataSection
from paca.workbench.models.embedded import SMOLLM2
from paca.workbench.models.load import load_model, load_tokenizer
from paca.workbench.vision.batch_norm import freeze_batch_norm
from paca.workbench.vision.models import EFFICIENTNET_LITE0, classifier_names, load_classifier, pixel_format
from pretrained_llama import load_pretrained_llama, source_code

Batch = Mapping[str, Tensor]
LLAMA_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Subject:
    """A task, loaded.

    Args:
        model: The pretrained model; copied for every run.
        batches: Training batches without end, by seed.
        choosing: Held out, in batches, to choose a learning rate by.
        testing: Held out, to compare methods by.
        unrelated: What the model was pretrained on, or could do before; empty where there is no such thing.
        whole: Names of modules that are trained whole, such as a new head.
        source: The checkpoint that a quantized model was made from.
    """

    model: nn.Module
    batches: Callable[[int], Iterator[Batch]]
    choosing: list[Batch]
    testing: list[Batch]
    unrelated: list[Batch]
    whole: tuple[str, ...] = ()
    source: str | None = None


@dataclass(frozen=True)
class Task:
    """A model and what it is to learn.

    Args:
        name: What is typed.
        description: In one line.
        steps: Of each run.
        layers: Which are adapted, by kind: `all`, and by what they do; `lower` is what adapting `upper` leaves out.
        load: Loads it, from the folder of the data and the one that is written to.
        optimizers: Which of the steppers apply.
        quantized: Whether the model is, so that columns may be those of before.
        norms: Whether it has norms that can be trained.
    """

    name: str
    description: str
    steps: int
    layers: Mapping[str, str]
    load: Callable[[Path | None, Path], Subject]
    optimizers: tuple[str, ...] = ("adamw", "muon")
    quantized: bool = False
    norms: bool = True


def batches_of(sequences: list[dict[str, list[int]]], size: int, pad: int) -> list[Batch]:
    """Sequences in order as batches, padded to the longest of each; what remains is left out."""
    return [_padded(sequences[start : start + size], pad) for start in range(0, len(sequences) - size + 1, size)]


def _padded(sequences: list[dict[str, list[int]]], pad: int) -> Batch:
    length = max(len(sequence["input_ids"]) for sequence in sequences)
    ids = torch.full((len(sequences), length), pad)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        count = len(sequence["input_ids"])
        ids[row, :count], mask[row, :count] = torch.tensor(sequence["input_ids"]), 1
        labels[row, :count] = torch.tensor(sequence["labels"])
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def text_subject(
    model: Any, tokenizer: Any, section: DataSection, unrelated: list[str], length: int, size: int, blocks: int
) -> Subject:
    """A language model and text.

    Args:
        model: It.
        tokenizer: Its.
        section: The data, as in a recipe.
        unrelated: Texts of another kind.
        length: Tokens of a sequence.
        size: Sequences of a batch.
        blocks: The most held-out sequences of each set.

    Returns:
        The subject.
    """
    model.config.use_cache = False
    pad = tokenizer.pad_token_id or tokenizer.eos_token_id
    data = prepare_data(read_data(section), section, tokenizer, length)
    held_out = list(data.held_out)
    if "messages" not in section.train and section.train == "python-reference":
        held_out = [sequence for sequence in held_out if len(sequence["input_ids"]) == length]
    train = list(data.train)

    def batches(seed: int) -> Iterator[Batch]:
        drawing = random.Random(seed)
        while True:
            order = drawing.sample(train, len(train))
            yield from batches_of(order, size, pad)

    other = [{"text": text} for text in unrelated]
    known = encode(True, other, tokenizer, length)[: blocks // 2] if other else []
    return Subject(
        model,
        batches,
        batches_of(held_out[::2][:blocks], size, pad),
        batches_of(held_out[1::2][:blocks], size, pad),
        batches_of(known, size, pad),
    )


def _reference(model: Any, tokenizer: Any) -> Subject:
    section = DataSection(train="python-reference", holdout_every=5)
    return text_subject(model, tokenizer, section, source_code()[1], length=128, size=8, blocks=64)


def _llama_reference(_data: Path | None, cache: Path) -> Subject:
    return _reference(*load_pretrained_llama(cache / "llama"))


def _llama_reference_nf4(_data: Path | None, cache: Path) -> Subject:
    folder = cache / "llama"
    _, tokenizer = load_pretrained_llama(folder)
    model = load_model(str(folder), "float32", "nf4")
    for layer in model.modules():
        apply_cpu_workarounds(layer)  # or LoRA would be trained over a wrong matrix on some CPUs
    return dataclasses.replace(_reference(model, tokenizer), source=str(folder))


def _llama_questions(data: Path | None, cache: Path) -> Subject:
    folder = _needed(data, "mmlu")
    files = [file.read_text(encoding="utf-8", errors="replace") for file in sorted((folder / "test").glob("*.csv"))]
    return _llama_text(cache, "questions", files, holdout_every=20)


def _llama_conversations(data: Path | None, cache: Path) -> Subject:
    files = [_needed(data, "oasst") / "chat.jsonl", _needed(data, "instruct") / "train.jsonl"]
    rows = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    turns = ["\n".join(f"{turn['role']}: {turn['content']}" for turn in row["messages"]) for row in rows]
    return _llama_text(cache, "conversations", turns, holdout_every=8)


def _llama_text(cache: Path, name: str, texts: list[str], holdout_every: int) -> Subject:
    model, tokenizer = load_pretrained_llama(cache / "llama")
    file = cache / f"{name}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(texts), encoding="utf-8")
    section = DataSection(train=str(file), holdout_every=holdout_every)
    return text_subject(model, tokenizer, section, source_code()[1], length=128, size=8, blocks=64)


def _smollm2_reference(_data: Path | None, _cache: Path) -> Subject:
    section = DataSection(train="python-reference", holdout_every=5)
    model = load_model(SMOLLM2, "float32")
    return text_subject(model, load_tokenizer(SMOLLM2), section, source_code()[1], length=128, size=4, blocks=48)


def _smollm2_chat(data: Path | None, _cache: Path) -> Subject:
    section = DataSection(train=str(_needed(data, "oasst") / "chat.jsonl"), holdout_every=4)
    model = load_model(SMOLLM2, "float32")
    return text_subject(model, load_tokenizer(SMOLLM2), section, source_code()[1], length=256, size=2, blocks=24)


def _efficientnet_cifar(data: Path | None, _cache: Path) -> Subject:
    arrays = numpy.load(_needed(data, "cifar10.npz"))
    classes = [str(name) for name in arrays["class_names"]]
    torch.manual_seed(0)
    model = load_classifier(EFFICIENTNET_LITE0, classes, "float32")
    pixels = pixel_format(model, 64)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (pixels.mean, pixels.std))

    def batch(images: Any, labels: Any, flips: Tensor | None = None) -> Batch:
        values = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        values = interpolate((values - mean) / std, size=(pixels.size, pixels.size), mode="bilinear")
        if flips is not None:
            values = torch.where(flips.view(-1, 1, 1, 1), values.flip(3), values)
        return {"pixel_values": values, "labels": torch.from_numpy(labels)}

    images, labels = arrays["train_images"], arrays["train_labels"]

    def batches(seed: int) -> Iterator[Batch]:
        drawing = torch.Generator().manual_seed(seed)
        while True:
            order = torch.randperm(len(images), generator=drawing)
            for some in order.split(32)[:-1]:
                yield batch(images[some], labels[some], torch.rand(len(some), generator=drawing) < 0.5)

    held = [
        batch(arrays["test_images"][start : start + 50], arrays["test_labels"][start : start + 50])
        for start in range(0, len(arrays["test_images"]), 50)
    ]
    model = freeze_batch_norm(model)
    return Subject(model, batches, held[::2], held[1::2], [], tuple(classifier_names(model, len(classes))))


def _needed(data: Path | None, name: str) -> Path:
    if data is None or not (data / name).exists():
        raise PacaError(f"{name!r} is not there: name the folder that has it with --data, or leave its tasks out.")
    return data / name


def _names(*layers: str) -> str:
    return rf".*\.({'|'.join(layers)})"


_LLAMA = {
    "all": _names(*LLAMA_LAYERS),
    "out": _names("down_proj"),
    "o-out": _names("o_proj", "down_proj"),
    "mlp": _names("gate_proj", "up_proj", "down_proj"),
    "attention": _names("q_proj", "k_proj", "v_proj", "o_proj"),
}


def _halves(lower: str, upper: str) -> dict[str, str]:
    """What is in the blocks of each half, told from other modules by the name of their list."""
    return {
        "lower": rf".*\.layers\.({lower})\..*",
        "upper": rf".*\.layers\.({upper})\..*\.({'|'.join(LLAMA_LAYERS)})",
        "upper-mlp": rf".*\.layers\.({upper})\..*\.(gate_proj|up_proj|down_proj)",
    }


_SMALL_LLAMA = {**_LLAMA, **_halves("[01]", "[23]")}
_SMOLLM2 = {**_LLAMA, **_halves(r"\d|1[0-4]", r"1[5-9]|2\d")}

TASKS = {
    task.name: task
    for task in (
        Task(
            "llama-reference",
            "a small Llama of source code learns Python's reference; 200 steps of 1,024 tokens",
            200,
            _SMALL_LLAMA,
            _llama_reference,
        ),
        Task(
            "llama-reference-nf4",
            "the same Llama with its weights in NF4 learns the same",
            200,
            _SMALL_LLAMA,
            _llama_reference_nf4,
            quantized=True,
        ),
        Task(
            "efficientnet-cifar",
            "EfficientNet-Lite0 of ImageNet learns CIFAR-10 at 64 pixels; 100 steps of 32 images",
            100,
            {"all": _names("conv_pw", "conv_pwl"), "out": _names("conv_pwl")},
            _efficientnet_cifar,
            optimizers=("adamw",),
            norms=False,  # batch normalisation is frozen
        ),
        Task(
            "llama-questions",
            "the small Llama learns MMLU's questions; 200 steps of 1,024 tokens",
            200,
            _SMALL_LLAMA,
            _llama_questions,
        ),
        Task(
            "llama-conversations",
            "the small Llama learns conversations of Open Assistant and Self-Instruct; 200 steps of 1,024 tokens",
            200,
            _SMALL_LLAMA,
            _llama_conversations,
        ),
        Task(
            "smollm2-reference",
            "SmolLM2-135M learns Python's reference; 40 steps of 512 tokens",
            40,
            _SMOLLM2,
            _smollm2_reference,
        ),
        Task(
            "smollm2-reference-longer",
            "SmolLM2-135M learns Python's reference; 120 steps of 512 tokens",
            120,
            _SMOLLM2,
            _smollm2_reference,
        ),
        Task(
            "smollm2-chat",
            "SmolLM2-135M learns Open Assistant's answers; 40 steps of 2 conversations",
            40,
            _SMOLLM2,
            _smollm2_chat,
        ),
    )
}
