"""Which key of a recipe is meant by one that it does not have: by other programs' words, or by its letters."""

import difflib
from collections.abc import Iterable

from paca.workbench.base.messages import listing

# What other programs, and people, call the keys of a recipe, and the keys' own names, for a key in another section.
_SYNONYMS = {
    "training.learning_rate": "lr learning_rate",
    "training.num_train_epochs": "epochs epoch num_epochs n_epochs max_epochs train_epochs num_train_epochs",
    "training.max_steps": "steps num_steps train_steps max_iters iters iterations max_steps",
    "training.per_device_train_batch_size": "batch_size batch bs micro_batch_size train_batch_size mini_batch_size "
    "per_device_train_batch_size",
    "training.per_device_eval_batch_size": "eval_batch_size val_batch_size",
    "training.gradient_accumulation_steps": "grad_accum gradient_accumulation accumulation accumulation_steps "
    "grad_accum_steps gradient_accumulation_steps",
    "training.max_length": "max_seq_length max_seq_len max_len seq_len seq_length sequence_len sequence_length "
    "cutoff_len block_size context_length max_length",
    "training.lr_scheduler_type": "scheduler lr_scheduler schedule lr_schedule lr_scheduler_type",
    "training.optim": "optimizer optimiser optim",
    "training.warmup_steps": "warmup num_warmup_steps warmup_steps",
    "training.weight_decay": "wd decay weight_decay",
    "training.max_grad_norm": "grad_clip gradient_clip clip_grad_norm max_grad_norm",
    "training.logging_steps": "log_steps log_every logging_steps",
    "training.save_steps": "save_every checkpoint_steps save_steps",
    "training.packing": "sample_packing pack packing",
    "training.gradient_checkpointing": "checkpointing activation_checkpointing gradient_checkpointing",
    "training.bf16": "bf16",
    "method.name": "method peft_method peft_type peft adapter adapter_type type",
    "method.r": "rank lora_r lora_rank dim r",
    "method.paca_alpha": "alpha",
    "method.lora_alpha": "alpha",
    "method.lora_dropout": "dropout",
    "method.target_modules": "targets target modules layers lora_target lora_target_modules target_modules",
    "method.selection": "strategy select selection",
    "model.name": "base_model model_name model_name_or_path model_id base pretrained checkpoint path",
    "model.dtype": "torch_dtype precision dtype",
    "model.quantization": "quantize quant load_in_4bit load_in_8bit bits quantization_config quantization",
    "model.chat_template": "template prompt_template chat_template",
    "data.train": "dataset datasets data_set dataset_name train_file train_data training_data train_dataset",
    "data.eval": "val valid validation test dev eval_file eval_data eval_dataset val_file validation_file test_file",
    "data.holdout_every": "val_set_size test_size val_size eval_size holdout hold_out",
    "data.train_split": "split",
    "images.size": "image_size resolution img_size pixels",
    "images.augment": "augmentation augmentations transforms",
    "output_dir": "output out out_dir output_folder save_dir",
    "seed": "random_seed",
    "early_stopping": "patience",
}


def near_key(where: str, key: str, known: Iterable[str]) -> str:
    """Say after a semicolon which key may be meant, or which there are.

    Args:
        where: The section, empty for the top level.
        key: What was given.
        known: The section's keys.

    Returns:
        Such as `; did you mean 'max_steps'?`, or `; did you mean training.max_steps?` of another section.
    """
    known = sorted(known)
    word = key[:60].lower().replace("-", "_").removeprefix("--")
    homes = [_parted(home) for home, words in _SYNONYMS.items() if word in words.split()]
    here = [name for section, _, name in homes if section == where and name in known]
    if here:
        return f"; did you mean {here[0]!r}?"
    elsewhere = [".".join(filter(None, (section, name))) for section, _, name in homes if section != where]
    if elsewhere:
        return f"; did you mean {elsewhere[0]}?"
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    parts = {name: set(name.split("_")) for name in known}
    sharing = [name for name in known if set(word.split("_")) & parts[name]]
    named = difflib.get_close_matches(word, sharing or known, n=3, cutoff=0.0 if sharing else 0.35)
    if len(known) > 12 and named:
        return f"; did you mean {' or '.join(map(repr, named))}?"
    usual = [name for section, _, name in map(_parted, _SYNONYMS) if section == where and name in known]
    return listing(known, most=60) or f"; among the known: {', '.join(usual)}"


def _parted(home: str) -> tuple[str, str, str]:
    return home.rpartition(".")
