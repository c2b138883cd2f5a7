"""Every recipe that ships: read, checked, its settings those of the paper; and the small twins run."""

import json

import pytest
from tests.paths import ROOT
from tests.workbench.tiny import write_jsonl

from paca.workbench.recipe.recipe import read_recipe, shipped_recipes
from paca.workbench.recipe.tasks import IMAGES, PREFERENCE, TEXT
from paca.workbench.training.run import finetune
from paca.workbench.vision.arguments import image_method_config

FOLDER = ROOT / "recipes"
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# Rank, alpha (None: the rank), learning rate, sequence, batch, accumulation, schedule, seed: the authors' settings.
PAPER = {
    "llama2-7b-mmlu": (16, 64, 1e-4, 512, 2, 4, None, 42),
    "llama2-13b-mmlu": (16, 64, 1e-4, 512, 2, 4, None, 42),
    "llama3-8b-mmlu": (16, 64, 1e-4, 512, 2, 4, None, 42),
    "llama3-8b-oasst1": (64, None, 5e-3, 512, 4, 4, "cosine", 42),
    "llama3-8b-qpaca-oasst1": (64, None, 5e-3, 512, 4, 4, "cosine", 42),
    "llama3.1-70b-qpaca-oasst1": (64, None, 5e-3, 768, 8, 2, "cosine", 526),
}
TWINS = {
    "smollm2-mmlu": "llama3-8b-mmlu",
    "smollm2-oasst1": "llama3-8b-oasst1",
    "smollm2-qpaca-oasst1": "llama3.1-70b-qpaca-oasst1",
    "smollm2-longalpaca": "llama2-7b-longalpaca-48k",
}
OF_IMAGES = {name: path for name, path in shipped_recipes().items() if name.startswith(("vit", "efficientnet"))}


def test_every_file_of_the_folder_ships():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(shipped_recipes())
    assert len(shipped_recipes()) >= 20


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_a_recipe_is_valid(name):
    path = FOLDER / f"{name}.yaml"
    recipe = read_recipe(path)
    assert recipe.output_dir == f"outputs/{name}"
    assert recipe.method.name == "paca"
    head = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert f"paca finetune {name}" in head
    assert all(len(line) < 120 for line in path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("name", PAPER)
def test_the_settings_are_the_papers(name):
    recipe = read_recipe(FOLDER / f"{name}.yaml")
    config, training = recipe.method.config, recipe.training
    assert (
        config["r"],
        config.get("paca_alpha"),
        training["learning_rate"],
        training["max_length"],
        training["per_device_train_batch_size"],
        training["gradient_accumulation_steps"],
        training.get("lr_scheduler_type"),
        recipe.seed,
    ) == PAPER[name]
    assert config["target_modules"] == LINEARS
    assert config["random_seed"] == recipe.seed
    assert training["num_train_epochs"] == 1
    assert recipe.model.dtype == "bfloat16"
    assert recipe.model.quantization == ("nf4" if "qpaca" in name else None)


def test_the_long_recipe_has_the_papers_length():
    recipe = read_recipe(FOLDER / "llama2-7b-longalpaca-48k.yaml")
    assert recipe.training["max_length"] == 49152 == 4096 * recipe.model.config["rope_parameters"]["factor"]


@pytest.mark.parametrize("twin", TWINS)
def test_a_twin_is_adapted_alike(twin):
    small, large = (read_recipe(FOLDER / f"{name}.yaml") for name in (twin, TWINS[twin]))
    for key in ("r", "paca_alpha", "target_modules"):
        assert small.method.config.get(key) == large.method.config.get(key), key
    assert small.model.quantization == large.model.quantization
    assert small.training.get("lr_scheduler_type") == large.training.get("lr_scheduler_type")


@pytest.fixture
def data_folder(tmp_path):
    """Files with the names, and the formats, of those that the twins read."""
    folder = tmp_path / "given"
    for name in ("mmlu/val", "mmlu/dev", "instruct", "oasst"):
        (folder / name).mkdir(parents=True)
    for part in ("val", "dev"):
        lines = [f'"What is {number}, then?",a,b,c,d,{"ABCD"[number % 4]}\n' for number in range(12)]
        (folder / "mmlu" / part / f"high_school_maths_{part}.csv").write_text("".join(lines))
    chats = [
        {"messages": [{"role": "user", "content": f"Say {word}"}, {"role": "assistant", "content": word * 4}]}
        for word in ("cat ", "dog ", "fox ", "mat ") * 5
    ]
    for name in ("instruct/train.jsonl", "instruct/eval.jsonl", "oasst/chat.jsonl"):
        write_jsonl(folder / name, chats)
    said = {"Woof": 0, "A good deal longer, and worse": 1}
    answers = [{"text": text, "role": "assistant", "rank": rank, "replies": []} for text, rank in said.items()]
    trees = [
        {"message_tree_id": str(number), "prompt": {"text": f"Hi {number}", "role": "prompter", "replies": answers}}
        for number in range(20)
    ]
    write_jsonl(folder / "oasst" / "en_100_tree.jsonl", trees)
    return folder


@pytest.mark.parametrize("name", [name for name in sorted(shipped_recipes()) if name.startswith("smollm2-")])
def test_a_twin_runs_from_local_files(name, tiny_model, data_folder, tmp_path):
    recipe = read_recipe(
        FOLDER / f"{name}.yaml",
        [
            f"model.name={tiny_model}", "method.r=4", "training.max_steps=3", "training.use_cpu=true",
            "training.disable_tqdm=true", "training.max_length=128", "training.learning_rate=1e-2",
            *([] if "python" in name or name == "smollm2-qpaca" else [f"data.path={data_folder}"]),
            *(["method.target_modules=[q_proj, v_proj]"] if "qpaca" in name else []),
        ],
        str(tmp_path / "run"),
    )  # fmt: skip
    assert recipe.task in (TEXT, PREFERENCE)
    metrics = finetune(recipe)
    assert metrics["steps"] == 3
    assert metrics["after"]["loss"] < metrics["before"]["loss"]
    assert json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())["peft_type"] == "PACA"


def test_the_papers_runs_on_images_are_there():
    assert {"vit-cifar10", "vit-cifar100", "vit-pets", "vit-flowers102"} <= set(OF_IMAGES)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_recipe_for_images_is_read_and_its_method_can_be_made(name):
    recipe = read_recipe(OF_IMAGES[name])
    assert recipe.task == IMAGES
    assert recipe.output_dir == f"outputs/{name}"
    config = image_method_config(recipe.method.name, recipe.method.config, ["head"])
    assert config.modules_to_save == ["head"]
