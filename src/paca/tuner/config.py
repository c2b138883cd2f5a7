"""`PacaConfig`: what a user says about an adapter, and what can be wrong with that whatever the model is."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

from peft.config import PeftConfig
from peft.utils import CONFIG_NAME, PeftType
from peft.utils.constants import SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from torch import Tensor

from ..errors import PacaError
from .adapter_file import LayerFingerprint, finish_file, read_fingerprints, weights_file
from .card import describe_adapter
from .selection.given import given_problem
from .selection.gradient import MODES
from .selection.registry import INDICES, strategy_problem
from .unknown_fields import explain_unknown_fields

_USUAL_RANK = 8
BIAS_CHOICES = ("none", "all", "paca_only")


UPPER_HALF = "upper-half"  # of the blocks: what `layers_to_transform` may be in place of indices


@explain_unknown_fields
@dataclass
class PacaConfig(PeftConfig):
    """Configuration of Partial Connection Adaptation (https://arxiv.org/abs/2503.01905).

    In each targeted weight, `r` of the connections (the input columns) are trained in place. The fields have the
    meaning they have in `LoraConfig`, where that has them. At the same rank PaCA trains `out · r` parameters per
    layer where LoRA trains `(in + out) · r`, so rank 16 here costs about what rank 8 costs there.

    Args:
        r: Connections trained per layer.
        budget: In place of `r`: how many values to train in all, a whole number, or a share of the model below 1. All
            layers get the largest rank that fits, which takes the budget's place once the model is known.
        paca_alpha: Updates are scaled by `paca_alpha / r`, which acts as a multiplier of the learning rate. None
            means the rank, also where `rank_pattern` says another one: no scaling.
        target_modules: Names of the layers to adapt (each matches whole names or their ends), a regular expression,
            `"all-linear"`, `"all-weights"` (convolutions, attention modules and experts as well, heads never), `"mlp"`
            (the layers of MLPs) or `"mlp-out"`: those that project out of an MLP, such as a Llama's `down_proj`. None
            means the usual ones of a known architecture.
        target_parameters: Names of fused expert weights to adapt, such as `"mlp.experts.down_proj"` (each matches
            whole names or their ends); a connection is an input feature, the same ones for every expert.
        exclude_modules: Names, or a regular expression, of layers to leave out.
        layers_to_transform: Indices of the blocks whose layers are adapted, or `"upper-half"`: the upper half of the
            blocks and what comes after them, so that backward ends half way. None means all.
        layers_pattern: Name of the list that holds the blocks, if `layers_to_transform` does not find it.
        rank_pattern: Other ranks for some layers: `{name or regular expression: r}`.
        clamp_rank: Cap `r` at a layer's number of connections, and log which layers these are. By default a rank that
            is too large is an error.
        alpha_pattern: Other `paca_alpha` for some layers: `{name or regular expression: alpha}`.
        bias: Which biases are trained as well: `"none"`, `"all"`, or `"paca_only"`, those of the adapted layers.
        train_norms: Train the weights of all norms as well, each whole whatever the rank (LayerNorm, RMSNorm and their
            like; not batch normalisation). Once the model is known they stand in `target_modules`.
        modules_to_save: Further modules that are trained whole and saved with the adapter, a new head for instance.
        random_seed: Seed of the connections. Each layer derives its own from its name, so the choice does not depend
            on machine or module order. None draws from torch's global generator. The chosen indices are saved
            either way; loading needs no seed.
        selection: How the connections are chosen: `"random"`, `"weight"`, `"weight_smallest"`, `"gradient"`,
            `"activation"`, `"weight_activation"`, `"indices"`, or a name given to `paca.register_selection`. Those
            that need data choose in `paca.select_connections(model, dataloader)`, before training.
        selection_batches: For a strategy that needs data: how many batches of it to see.
        gradient_mode: For `"gradient"`: `"sum"` ranks columns by the norm of their accumulated gradient, as the
            paper does, and keeps the sums on the CPU; `"norm"` by the accumulated squares of the batches' norms,
            which are `in` numbers a layer.
        selection_indices: For `"indices"`: `{name or regular expression: [indices]}`, or a JSON file that holds it.
        run_length: Connections come in contiguous runs of this length, those with the largest summed score; `r` has
            to be a multiple of it.
        aligned: Layers that read the same input (query, key and value; gate and up) share one index set. True for
            those known by name, or groups of last names: `[["q_proj", "k_proj", "v_proj"]]`.
        reselect_every: Train other connections every `reselect_every` steps, by `paca.ReselectCallback()`, a Trainer
            callback, or `paca.reselect(model, optimizer)`. Memory stays that of rank `r`; the saved adapter holds all
            connections that were trained. None: they stay.
        reselect_warmup: Steps over which the learning rate rises again after each move, in a Trainer.
        init_weights: Start from the pretrained model. False starts from random updates, for tests.
        column_source: For a quantized base model: the unquantized checkpoint, a folder or a Hub name, whose
            safetensors files the selected columns are read from when the adapter is made. None takes the dequantized
            columns. They are saved with the adapter, so loading it does not need the checkpoint.
        fan_in_fan_out: Accepted for configurations written for LoRA. The layout of a weight is known from its layer,
            so that True is ignored, with a warning, on layers that store `(out, in)`.

    Raises:
        PacaError: If a value makes no sense; the message repeats it.
    """

    r: int = _USUAL_RANK
    budget: int | float | None = None
    paca_alpha: float | None = None
    target_modules: list[str] | str | None = None
    target_parameters: list[str] | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | str | None = None
    layers_pattern: list[str] | str | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    clamp_rank: bool = False
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    bias: str = "none"
    train_norms: bool = False
    modules_to_save: list[str] | None = None
    random_seed: int | None = None
    selection: str = "random"
    selection_indices: dict[str, list[int]] | str | None = None
    selection_batches: int = 100
    gradient_mode: str = "sum"
    run_length: int = 1
    aligned: bool | list[list[str]] = False
    reselect_every: int | None = None
    reselect_warmup: int = 0
    init_weights: bool = True
    column_source: str | None = None
    fan_in_fan_out: bool = False

    # No fields, so never saved.
    _being_loaded = False  # read from a saved adapter, whose weights are not loaded yet
    _fingerprints = cast("Mapping[str, Tensor]", MappingProxyType({}))  # those of the file that it was read from
    # Those of the state dict that was taken last, by layer, for the file that it is about to be written to.
    _unsaved_fingerprints = cast("Mapping[str, LayerFingerprint]", MappingProxyType({}))
    _seed_is_drawn = False  # the seed comes from torch's global generator

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType.PACA
        self._saved_as: dict[str, Any] = {}  # fields that the file has other values of; no field, so never saved
        for name in ("target_modules", "exclude_modules"):
            value = getattr(self, name)
            setattr(self, name, set(value) if isinstance(value, (list, tuple)) else value)
        problems = list(config_problems(self))
        if problems:
            raise PacaError("PacaConfig: " + " ".join(problems))
        if (
            self.paca_alpha is None and self.budget is None
        ):  # no scaling, whatever rank a layer has; the first key that fits a layer counts
            self.paca_alpha = self.r
            self.alpha_pattern = {**self.alpha_pattern, **self.rank_pattern, **self.alpha_pattern}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save it; for an adapter whose connections have moved, with the ranks that its weights file has.

        Args:
            save_directory: The folder.
            **kwargs: Passed on to PEFT.
        """
        saved = copy.copy(self)
        saved.__dict__.update(self._saved_as)
        super(PacaConfig, saved).save_pretrained(save_directory, **kwargs)
        # PEFT comes here last: its card and the weights are written.
        describe_adapter(save_directory, saved)
        mode = os.stat(os.path.join(save_directory, CONFIG_NAME)).st_mode
        finish_file(os.path.join(save_directory, SAFETENSORS_WEIGHTS_NAME), mode, self._unsaved_fingerprints)
        self._unsaved_fingerprints = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> Any:
        """Load the configuration of a saved adapter, after a look at whether its weights file is whole.

        PEFT reads the configuration before it touches the model, and the weights after. A file that cannot be read
        must be found here, or the model would be left half adapted.

        Args:
            pretrained_model_name_or_path: A folder, or the name of a repository on the Hub.
            subfolder: Folder within it.
            **kwargs: Passed on to PEFT.

        Returns:
            The configuration.
        """
        fingerprints = read_fingerprints(weights_file(pretrained_model_name_or_path, subfolder, kwargs))
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)
        config._being_loaded = True
        config._fingerprints = fingerprints
        return config


def rank_of(config: PacaConfig, name: str) -> int:
    """The rank of a layer: `rank_pattern`'s, or `r`."""
    return config.rank_pattern.get(get_pattern_key(config.rank_pattern.keys(), name), config.r)


def whole_runs(config: PacaConfig, rank: int, connections: int) -> int:
    """The rank, capped at the whole runs of the layer where `clamp_rank` says so."""
    return min(rank, connections // config.run_length * config.run_length) if config.clamp_rank else rank


def alpha_of(config: PacaConfig, name: str) -> float:
    """The alpha of a layer: `alpha_pattern`'s, or `paca_alpha`, or `r`."""
    alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), name), config.paca_alpha)
    return config.r if alpha is None else alpha


def config_problems(config: PacaConfig) -> Iterator[str]:
    """What is wrong with a configuration, one sentence per problem."""
    yield from _number_problems(config)
    yield from _budget_problems(config)
    yield from _target_problems(config)
    yield from _selection_problems(config)
    yield from _run_problems(config)
    yield from _reselect_problems(config)


def _number_problems(config: PacaConfig) -> Iterator[str]:
    if not _is_positive(config.r):
        yield f"`r` should be a positive integer value but the value passed is {config.r!r}."
    if config.paca_alpha is not None and not _is_alpha(config.paca_alpha):
        yield f"paca_alpha={config.paca_alpha!r} is not a finite number other than 0; leave it out to use r."
    for pattern, rank in config.rank_pattern.items():
        if not _is_positive(rank):
            yield f"rank_pattern[{pattern!r}]={rank!r} is not a positive integer."
    for pattern, alpha in config.alpha_pattern.items():
        if not _is_alpha(alpha):
            yield f"alpha_pattern[{pattern!r}]={alpha!r} is not a finite number other than 0."
    if config.random_seed is not None and (not isinstance(config.random_seed, int) or config.random_seed < 0):
        yield f"random_seed={config.random_seed!r} is not an integer of 0 or more; leave it out for any connections."


def _budget_problems(config: PacaConfig) -> Iterator[str]:
    budget = config.budget
    if budget is None:
        return
    if not _is_positive(budget) and not (isinstance(budget, float) and 0 < budget < 1):
        yield (
            f"budget={budget!r} is neither a number of trained values, a whole one such as 2_000_000, nor a share of "
            "the model below 1 such as 0.02."
        )
    if config.r != _USUAL_RANK:
        yield f"r={config.r!r} and budget={budget!r} both say how much is trained; leave one of them out."
    if config.rank_pattern:
        yield f"budget={budget!r} gives all layers one rank; leave it out to say ranks with rank_pattern."


def _target_problems(config: PacaConfig) -> Iterator[str]:
    if config.bias not in BIAS_CHOICES:
        hint = "; LoRA's 'lora_only' is 'paca_only' here" if config.bias == "lora_only" else ""
        yield f"bias={config.bias!r} is unknown; pass one of {', '.join(map(repr, BIAS_CHOICES))}{hint}."
    if config.column_source is not None and (not isinstance(config.column_source, str) or not config.column_source):
        yield f"column_source={config.column_source!r} is not the name of a folder or a Hub repository."
    if isinstance(config.target_parameters, str):
        yield f"target_parameters={config.target_parameters!r} is a str; pass a list: [{config.target_parameters!r}]."
    blocks = config.layers_to_transform
    if isinstance(blocks, str) and blocks != UPPER_HALF:
        yield f"layers_to_transform={blocks!r} is unknown; pass the indices of blocks, or {UPPER_HALF!r}."
    elif isinstance(config.target_modules, str) and blocks not in (None, UPPER_HALF):
        yield (
            "`layers_to_transform` cannot be used when `target_modules` is a str; pass a list of names, or "
            f"layers_to_transform={UPPER_HALF!r}."
        )
    if blocks == UPPER_HALF and config.layers_pattern:
        yield f"`layers_pattern` does nothing with layers_to_transform={UPPER_HALF!r}; leave it out."
    if isinstance(config.target_modules, str) and config.layers_pattern:
        yield "`layers_pattern` cannot be used when `target_modules` is a str; pass a list of names."
    if config.layers_pattern and config.layers_to_transform is None:
        yield "When `layers_pattern` is specified, `layers_to_transform` must also be specified."


def _selection_problems(config: PacaConfig) -> Iterator[str]:
    problem = strategy_problem(config.selection)
    if problem:
        yield problem
    if config.selection == INDICES and config.selection_indices is None:
        yield "selection='indices' needs the indices: pass selection_indices={'q_proj': [0, 5, 7], …}."
    if config.selection != INDICES and config.selection_indices is not None:
        yield f"selection_indices is given, but selection={config.selection!r}; pass selection='indices'."
    if config.selection_indices is not None and not isinstance(config.selection_indices, str):
        problem = given_problem(config.selection_indices)
        if problem:
            yield f"selection_indices: {problem}"
    if not _is_positive(config.selection_batches):
        yield f"selection_batches={config.selection_batches!r} is not a whole number of 1 or more."
    if config.gradient_mode not in MODES:
        yield f"gradient_mode={config.gradient_mode!r} is unknown; pass one of {', '.join(map(repr, MODES))}."
    if not isinstance(config.aligned, bool) and not _are_groups(config.aligned):
        yield (
            f"aligned={config.aligned!r} is neither True, False nor a list of lists of layer names; pass for example "
            "[['q_proj', 'k_proj', 'v_proj']]."
        )


def _run_problems(config: PacaConfig) -> Iterator[str]:
    length = config.run_length
    if not _is_positive(length):
        yield f"run_length={length!r} is not a whole number of 1 or more."
        return
    if config.selection == INDICES and length > 1:
        yield f"run_length={length} does nothing with selection='indices', which says every connection; leave it out."
        return
    r = {} if config.budget is not None else {"r": config.r}
    ranks = {**r, **{f"rank_pattern[{name!r}]": rank for name, rank in config.rank_pattern.items()}}
    for where, rank in ranks.items():
        if isinstance(rank, int) and rank % length:
            nearest = max(length, rank // length * length)
            yield f"{where}={rank} is no multiple of run_length={length}; pass {nearest}, or another run_length."


def _reselect_problems(config: PacaConfig) -> Iterator[str]:
    every, warmup = config.reselect_every, config.reselect_warmup
    if every is None:
        if warmup:
            yield f"reselect_warmup={warmup!r} does nothing without reselect_every; pass reselect_every=20, say."
        return
    if not _is_positive(every):
        yield f"reselect_every={every!r} is not a whole number of 1 or more; leave it out for connections that stay."
    elif not isinstance(warmup, int) or not 0 <= warmup < every:
        yield f"reselect_warmup={warmup!r} has to be a whole number below reselect_every={every}, 0 for none."
    if config.selection == INDICES:
        yield "reselect_every needs a strategy to choose new connections by, and selection='indices' is none."


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_alpha(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value != 0 and math.isfinite(value)


def _are_groups(groups: object) -> bool:
    return isinstance(groups, (list, tuple)) and all(
        isinstance(group, (list, tuple)) and all(isinstance(name, str) for name in group) for group in groups
    )
