"""The model card of a run's adapter: what any adapter's says, and the recipe and the result of the run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paca.tuner.card import describe_adapter
from paca.workbench.base import yaml
from paca.workbench.models.embedded import EMBEDDED, EmbeddedModel
from paca.workbench.recipe.recipe import Recipe
from paca.workbench.recipe.tasks import IMAGES


def write_card(folder: Path, recipe: Recipe, metrics: Mapping[str, Any], closing: str) -> None:
    """Describe a run in the README.md of its adapter.

    Args:
        folder: The adapter's folder, which PEFT has written.
        recipe: What was run.
        metrics: What metrics.json holds.
        closing: The line that says what improved.
    """
    from peft import PeftConfig

    from paca.workbench.methods.registry import register_methods

    register_methods()
    figures = {
        "trained parameters": f"{metrics['trained_parameters']:,} ({metrics['trained_share']:.2%} of the model)",
        "steps": f"{metrics['steps']:,}",
        "trained on": metrics["device"],
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in figures.items())
    said = yaml.dump(recipe.to_dict())
    more = f"## Result\n\n{closing}\n\n| | |\n|---|---|\n{rows}\n\n## Recipe\n\n```yaml\n{said}```"
    embedded = _embedded(recipe)
    note = "" if embedded is None else embedded.provenance()
    public = embedded is None or embedded.hub is not None
    describe_adapter(str(folder), PeftConfig.from_pretrained(folder), more, note, public, replace=True)


def _embedded(recipe: Recipe) -> EmbeddedModel | None:
    if recipe.task == IMAGES:
        from paca.workbench.vision.models import EMBEDDED as CLASSIFIERS

        return CLASSIFIERS.get(recipe.model.name)
    return EMBEDDED.get(recipe.model.name)
