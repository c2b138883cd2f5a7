"""TRL's `DPOTrainer` and `KTOTrainer` over rows that are tokenized already."""

from functools import partial
from typing import Any
from unittest import mock

from trl import DPOTrainer, KTOTrainer

from paca.workbench.training.held_out_preferences import Preferences, add_batch


class _Encoded:
    """Takes rows as `prepare_preferences` makes them, and saves the adapter that is trained alone.

    TRL keeps a copy of an adapter that is trained on, to compare with. It is the adapter that the recipe names, so it
    needs no saving, and Trainer would load it in place of the trained one in some versions.
    """

    model: Any
    args: Any

    def measure_batch(self, inputs: Any) -> None:
        """Evaluate a batch, as it will be done before and after training."""
        add_batch(self.model, inputs, self.args.beta, Preferences())

    def _save(self, *args: Any, **kwargs: Any) -> None:
        save = partial(self.model.save_pretrained, selected_adapters=[self.model.active_adapter])
        with mock.patch.object(self.model, "save_pretrained", save):
            super()._save(*args, **kwargs)  # type: ignore[misc]


class PairTrainer(_Encoded, DPOTrainer):
    """Learns from pairs of answers."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class LabelTrainer(_Encoded, KTOTrainer):
    """Learns from answers with labels."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, name: str) -> Any:
        """Give each row another's answer, of the same batch, from which KTO's divergence is estimated."""
        if not self.calculate_KL:
            return dataset

        def exchanged(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
            answers = rows["completion_ids"]
            return {**rows, "KL_completion_ids": [*answers[-1:], *answers[:-1]]}

        return dataset.map(exchanged, batched=True, batch_size=args.per_device_train_batch_size)
