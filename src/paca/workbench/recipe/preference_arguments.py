"""What the `training` keys of a preference recipe become: TRL's `DPOConfig`, or its `KTOConfig`."""

from collections.abc import Mapping
from typing import Any

from paca.workbench.base.messages import shown, suggestion
from paca.workbench.base.schema import class_problems
from paca.workbench.base.trainer_arguments import library_keys, own_key_problems
from paca.workbench.recipe.text_arguments import (
    REFUSED_TRAINING_KEYS,
    count_problems,
    logger_problems,
    make_arguments,
)

KTO_LOSSES = ("kto", "apo_zero_unpaired")
DPO_LOSSES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
)  # fmt: skip
_REFERENCE = "the reference is the model as it is before training: the base, or the adapter that model.adapter names"
# Keys of TRL's, of today and of before, that would turn nothing here.
REFUSED_PREFERENCE_KEYS = {
    **{key: REFUSED_TRAINING_KEYS[key] for key in ("model_init_kwargs", "dataset_num_proc", "pad_token")},
    **{key: text for key, text in REFUSED_TRAINING_KEYS.items() if key in ("output_dir", "seed")},
    **{key: REFUSED_TRAINING_KEYS[key] for key in ("resume_from_checkpoint", "save_only_model")},
    "include_num_input_tokens_seen": REFUSED_TRAINING_KEYS["include_num_input_tokens_seen"],
    **dict.fromkeys(("ref_model", "ref_model_init_kwargs", "ref_adapter_name", "model_adapter_name"), _REFERENCE),
    **dict.fromkeys(("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"), _REFERENCE),
    "force_use_ref_model": _REFERENCE,
    "truncation_mode": "sequences are cut at their end",
    "padding_free": "TRL has it switched off",
}


def learns_from_pairs(training: Mapping[str, Any]) -> bool:
    """Whether a recipe's loss compares two answers, as DPO's do, or judges single ones, as KTO's."""
    return _losses(training)[0] not in KTO_LOSSES


def preference_arguments(training: Mapping[str, Any], output_dir: str, seed: int) -> Any:
    """Make TRL's config of the loss that a recipe's `training` keys name, which win over the defaults."""
    from trl import DPOConfig, KTOConfig

    losses = _losses(training)
    paired = learns_from_pairs(training)
    given = {**training, "loss_type": losses if paired else losses[0]}
    return make_arguments(DPOConfig if paired else KTOConfig, given, output_dir, seed)


def preference_training_problems(training: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with a preference recipe's `training` keys, one message per problem."""
    from trl import DPOConfig, KTOConfig

    losses = _losses(training)
    unknown = [loss for loss in losses if loss not in (*DPO_LOSSES, *KTO_LOSSES)]
    if unknown or not losses:
        known = (*DPO_LOSSES, *KTO_LOSSES)
        named = unknown[0] if unknown else training["loss_type"]
        hint = suggestion(str(named)[:60], known)
        return [f"training.loss_type = {shown(named)}: expected one of {', '.join(known)}{hint}"]
    paired = learns_from_pairs(training)
    further = [*own_key_problems(training), *count_problems(training), *logger_problems(training.get("report_to"))]
    further += _loss_problems(losses, training, paired)
    config = DPOConfig if paired else KTOConfig
    given = {**library_keys(training), "loss_type": losses if paired else losses[0]}
    return class_problems(
        "training",
        given,
        config,
        REFUSED_PREFERENCE_KEYS,
        lambda: preference_arguments(training, "unused", 0),
        further,
    )


def _losses(training: Mapping[str, Any]) -> list[Any]:
    named = training.get("loss_type", "sigmoid")
    return list(named) if isinstance(named, (list, tuple)) else [named]


def _loss_problems(losses: list[Any], training: Mapping[str, Any], paired: bool) -> list[str]:
    """What TRL would say after the model is loaded, or at the first step."""
    problems = []
    weights = training.get("loss_weights")
    if len(losses) > 1 and any(loss in KTO_LOSSES for loss in losses):
        problems.append(
            f"training.loss_type = {shown(losses)}: {' and '.join(KTO_LOSSES)} take single answers, and stand alone"
        )
    if isinstance(weights, list) and len(weights) != len(losses):
        problems.append(f"training.loss_weights has {len(weights)} numbers for {len(losses)} losses; give each one")
    if "exo_pair" in losses and not training.get("label_smoothing"):
        problems.append("training.label_smoothing: exo_pair needs more than 0; its paper takes 1e-3")
    size = training.get("per_device_train_batch_size", 2)
    if losses == ["kto"] and size == 1:
        problems.append(
            "training.per_device_train_batch_size = 1: kto estimates its KL divergence by exchanging the answers of a "
            "batch, so it needs at least 2; or set training.loss_type=apo_zero_unpaired"
        )
    if not paired and training.get("train_sampling_strategy", "sequential") != "sequential" and losses == ["kto"]:
        problems.append("training.train_sampling_strategy: kto goes through the data in order; leave it out")
    return problems
