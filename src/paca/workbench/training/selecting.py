"""Runs selection strategies on a recipe's model and data, and nothing else: which connections would be trained?"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from paca.errors import PacaError
from paca.workbench.base.files import write_json
from paca.workbench.base.waiting import stage
from paca.workbench.methods.catalogue import METHODS
from paca.workbench.recipe.recipe import Recipe
from paca.workbench.training.run import trainer_of
from paca.workbench.training.selection_picture import draw_selection
from paca.workbench.training.stages import selection_batches

PICTURE = "selection.png"
# Strategies that look at data choose the largest channels, where one step of Adam changes the output far more than on
# random ones. Measured in docs/selection.md.
RATE_ON_LARGE_CHANNELS = 0.1


@dataclass(frozen=True)
class Selection:
    """What strategies have chosen.

    Args:
        chosen: Indices by layer, by strategy.
        sizes: How many connections each layer has.
        files: The JSON file of each strategy, which `selection_indices` takes.
        picture: The heat map.
    """

    chosen: Mapping[str, Mapping[str, Any]]
    sizes: Mapping[str, int]
    files: Mapping[str, Path]
    picture: Path


def select(recipe: Recipe, strategies: Sequence[str], folder: Path, overwrite: bool = False) -> Selection:
    """Let strategies choose the connections that a recipe would train, and write down what they chose.

    Each sees the pretrained model and, if it needs data, the batches that a run of the recipe would show it; the
    recipe's own strategy chooses what the run would train.

    Args:
        recipe: Model, data, and the method's settings.
        strategies: Their names; none for the recipe's own.
        folder: Where the files go.
        overwrite: Replace those of an earlier call.

    Returns:
        What was chosen, and where it is written.

    Raises:
        PacaError: If the recipe or the names make no sense, or the folder holds such files already.
    """
    names = list(dict.fromkeys(strategies or [recipe.method.config.get("selection", "random")]))
    files = {name: folder / f"{name}.json" for name in names}
    picture = folder / PICTURE
    _check(recipe, names, [*files.values(), picture], overwrite)
    first = dataclasses.replace(recipe, output_dir=str(folder), method=_method(recipe, names[0]))
    trainer, _ = trainer_of(first)
    folder.mkdir(parents=True, exist_ok=True)
    chosen: dict[str, Mapping[str, Any]] = {}
    sizes: Mapping[str, int] = {}
    bar = tqdm(names, unit="strategy", disable=trainer.args.disable_tqdm)
    for name in bar:
        bar.set_description(name)
        stage(f"choosing connections by {name}")
        chosen[name], sizes = _choose(trainer, recipe.seed, name)
        write_json(files[name], {layer: indices.tolist() for layer, indices in chosen[name].items()})
    stage("drawing the heat map")
    draw_selection(picture, f"{recipe.model.name}: trained connections", chosen, sizes)
    return Selection(chosen, sizes, files, picture)


def training_settings(recipe: Recipe, strategy: str, file: Path) -> dict[str, str]:
    """Settings of a recipe, by dotted key, with which it trains the connections in a file well.

    `strategy` chose them. What would choose or move connections once more is undone, and the learning rate is one that
    suits them: the recipe's suits those of its own strategy.
    """
    method = recipe.method.config
    undone = {"run_length": "1", "reselect_every": "null", "reselect_warmup": "0"}
    rate = float(recipe.training.get("learning_rate", METHODS["paca"].rate))
    own = method.get("selection", "random") if "learning_rate" in recipe.training else "random"
    return {
        "method.selection": "indices",
        "method.selection_indices": str(file),
        **{f"method.{key}": value for key, value in undone.items() if key in method},
        "training.learning_rate": f"{rate * _share_of_rate(strategy) / _share_of_rate(own):.4g}",
    }


def _share_of_rate(strategy: str) -> float:
    """The share of the learning rate for random connections that suits a strategy's."""
    from paca.tuner.selection import find_strategy

    return RATE_ON_LARGE_CHANNELS if find_strategy(strategy).data else 1.0


def _check(recipe: Recipe, names: Sequence[str], files: Sequence[Path], overwrite: bool) -> None:
    from paca.tuner.selection import find_strategy

    for name in names:
        find_strategy(name)
    if recipe.method.name != "paca":
        raise PacaError(
            f"The recipe's method is {recipe.method.name!r}, which selects no connections; add method.name=paca and "
            "the fields of PacaConfig in the place of its own."
        )
    there = [str(path) for path in files if path.exists()]
    if there and not overwrite:
        raise PacaError(f"There is an earlier selection ({', '.join(there)}); pass --overwrite, or another --output.")


def _method(recipe: Recipe, strategy: str) -> Any:
    config = {**recipe.method.config, "selection": strategy}
    if strategy != "indices":
        config.pop("selection_indices", None)
    return dataclasses.replace(recipe.method, config=config)


def _choose(trainer: Any, seed: int, strategy: str) -> tuple[dict[str, Any], dict[str, int]]:
    """What a strategy chooses, and the sizes of the layers; by an adapter of its own unless the model has it."""
    from paca.tuner.select_connections import select_connections, tuner_of

    model, adapter = trainer.model, trainer.model.active_adapter
    own = model.peft_config[adapter].selection != strategy
    if own:
        settings = {"selection": strategy, "selection_indices": None, "bias": "none"}
        config = dataclasses.replace(model.peft_config[adapter], **settings)
        adapter = f"{strategy}_alone"
        model.add_adapter(adapter, config)
    tuner = tuner_of(model, adapter)
    if adapter in tuner.unselected:
        batches, shown = selection_batches(trainer, seed), not trainer.args.disable_tqdm
        select_connections(model, batches, adapter_name=adapter, progress=shown)
    layers = tuner.adapter_layers(adapter)
    chosen = {name: layer.paca_indices[adapter].cpu() for name, layer in layers.items()}
    sizes = {name: layer.in_features for name, layer in layers.items()}
    if own:
        model.delete_adapter(adapter)
    return chosen, sizes
