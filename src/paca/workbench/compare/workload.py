"""The work that all methods share: one base model, one tokenized data set, the recipe's trainer."""

import copy
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

from paca.errors import PacaError
from paca.profiling.steps import TrainingStep
from paca.workbench.base.trainer_arguments import MUON
from paca.workbench.compare.choice import Entry
from paca.workbench.compare.unrelated import unrelated_text
from paca.workbench.data.chat_templates import set_chat_template
from paca.workbench.data.prepare import TrainingData, hold_out, prepare_data, read_data, spread
from paca.workbench.methods.catalogue import FLOORS, Method
from paca.workbench.methods.muon import use_muon
from paca.workbench.models.lean import quietly_lean
from paca.workbench.models.load import load_model, load_tokenizer
from paca.workbench.recipe.recipe import Recipe
from paca.workbench.recipe.text_arguments import training_arguments

# What would make a unit slower or noisier without changing what it measures.
_PLAIN = {
    "save_strategy": "no",
    "eval_strategy": "no",
    "disable_tqdm": True,
    "report_to": "none",
    "load_best_model_at_end": False,
}
_TUNING_SEQUENCES = 16


class Workload:
    """A recipe, loaded once per process and used by all units that run in it.

    `unrelated` is a text file that has nothing to do with the task; None for the built-in story.
    """

    def __init__(self, recipe: Recipe, unrelated: str | None = None) -> None:
        self.recipe = recipe
        self._unrelated = unrelated
        self._bases: dict[Any, Any] = {}
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)

    @cached_property
    def tokenizer(self) -> Any:
        """The base model's tokenizer."""
        tokenizer = load_tokenizer(self.recipe.model.name)
        set_chat_template(tokenizer, self.recipe.model.chat_template)
        return tokenizer

    @cached_property
    def data(self) -> TrainingData:
        """What is trained on, and what the result is measured on."""
        raw = read_data(self.recipe.data)
        return prepare_data(raw, self.recipe.data, self.tokenizer, self._length, self.recipe.seed)

    @cached_property
    def tuning(self) -> tuple[Any, Any]:
        """Training data without a slice, and that slice: rates are tuned on it, never on the held-out data."""
        train = self.data.train
        every = max(2, min(10, len(train) // _TUNING_SEQUENCES))
        kept, held = hold_out(range(len(train)), every)
        return train.select(kept), train.select(spread(held, _TUNING_SEQUENCES))

    @cached_property
    def unrelated(self) -> Any:
        """Sequences of the text that has nothing to do with the task."""
        from datasets import Dataset

        ids = self.tokenizer(unrelated_text(self._unrelated))["input_ids"]
        size = self._length or len(ids)
        blocks = [ids[start : start + size] for start in range(0, len(ids), size)]
        return Dataset.from_list([{"input_ids": block, "labels": block} for block in blocks if len(block) > 1])

    @property
    def _length(self) -> int | None:
        length: int | None = self.arguments(self.recipe.seed).max_length
        return length

    def base(self, method: Method) -> Any:
        """The base model that a method is put onto; not to be changed."""
        quantization = method.quantization or self.recipe.model.quantization
        key = repr(quantization)
        if key not in self._bases:
            section = self.recipe.model
            self._bases[key] = load_model(section.name, section.dtype, quantization, section.config)
            self._bases[key].config.use_cache = False
        return self._bases[key]

    def model(self, entry: Entry, share: bool = False) -> Any:
        """A copy of the base model, in training mode, with a method put onto it.

        With `share`, the copy stands on the base's own weights where the method never writes to them.
        """
        base = self.base(entry.method)
        shared = share and (entry.method.keeps_base or not entry.method.trains)
        memo = {id(parameter): parameter for parameter in base.parameters()} if shared else {}
        model = entry.method.put_on(copy.deepcopy(base, memo), entry.setting).train()
        if self.recipe.lean and entry.label not in FLOORS:
            quietly_lean(model)
        return model

    def arguments(self, seed: int, changes: Mapping[str, Any] | None = None) -> Any:
        """The recipe's `SFTConfig`, without checkpoints and bars; `changes` win over its `training` keys."""
        training = {**self.recipe.training, **_PLAIN, **(changes or {})}
        for key in ("save_steps", "eval_steps"):
            training.pop(key, None)
        return training_arguments(training, self._folder.name, seed)

    def trainer(
        self, entry: Entry, seed: int, changes: Mapping[str, Any] | None = None, train: Any = None, share: bool = False
    ) -> Any:
        """Put a method, the data and the recipe's arguments into TRL's `SFTTrainer`.

        `seed` sets the adapter's first values and the order of the data; `changes` and `share` are as in `arguments`
        and `model`. A PacaError says why the method can't be put onto the model, or which arguments do not go
        together.
        """
        from transformers import PrinterCallback, set_seed
        from trl import SFTTrainer

        _ = self.data, self.unrelated  # made now: new arguments reset accelerate's state, which a trainer needs
        set_seed(seed)
        try:
            trainer = SFTTrainer(
                model=self.model(entry, share),
                args=self.arguments(seed, changes),
                train_dataset=self.data.train if train is None else train,
                eval_dataset=self.data.held_out,
                processing_class=self.tokenizer,
            )
        except ValueError as error:
            if isinstance(error, PacaError):
                raise
            raise PacaError(f"{entry.label} can't be put onto {self.recipe.model.name!r}: {error}") from error
        if self.recipe.training.get("optim") == MUON:
            use_muon(trainer)
        trainer.pop_callback(PrinterCallback)  # stands in for the bar, and prints every log
        return trainer

    def step(self, entry: Entry, share: bool = False, size: tuple[int, int] | None = None) -> TrainingStep:
        """A training step with the recipe's optimizer and precision on one batch, the same for all methods.

        `size` gives the sequences and tokens of a batch of random ids; without it, the first batch of the training
        data is taken.
        """
        trainer = self.trainer(replace(entry, setting=entry.setting.anywhere()), self.recipe.seed, share=share)
        model, arguments = trainer.model, trainer.args
        if arguments.gradient_checkpointing:
            model.gradient_checkpointing_enable(arguments.gradient_checkpointing_kwargs)
        batch = trainer._prepare_inputs(self._random(size, model) if size else self._first_batch(trainer))
        # Backward goes through all blocks, as it does where nothing is trained, unless a method leaves some alone.
        if not (model.get_input_embeddings().weight.requires_grad or entry.setting.in_some_blocks):
            embed = model.get_input_embeddings()
            batch["inputs_embeds"] = embed(batch.pop("input_ids")).detach()
        return TrainingStep(model, batch, lambda trained: trainer.create_optimizer(), _precision(arguments))

    def _first_batch(self, trainer: Any) -> dict[str, Any]:
        from transformers import set_seed

        set_seed(self.recipe.seed)
        return dict(next(iter(trainer.get_train_dataloader())))

    def _random(self, size: tuple[int, int], model: Any) -> dict[str, Any]:
        import torch

        generator = torch.Generator().manual_seed(self.recipe.seed)
        ids = torch.randint(model.config.vocab_size, size, generator=generator)
        return {"input_ids": ids, "labels": ids.clone()}


def _precision(arguments: Any) -> Callable[[], AbstractContextManager[Any]]:
    """What a trainer enters around a forward pass; not asked of one, since several are alive when steps are timed."""
    import torch

    dtype = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    return nullcontext if dtype is None else lambda: torch.autocast(arguments.device.type, dtype)
