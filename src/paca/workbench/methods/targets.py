"""Names of layers in a method's config that no layer of the model has."""

from collections.abc import Iterator
from typing import Any

from paca.errors import PacaError
from paca.tuner.config import UPPER_HALF, PacaConfig
from paca.tuner.messages import not_found, unmatched_names
from paca.tuner.targets.keywords import MLP_WORDS, expand_mlp
from paca.tuner.targets.resolve import take_upper_half

NAMED = ("target_modules", "exclude_modules", "modules_to_save")
PATTERNS = ("rank_pattern", "alpha_pattern")


def check_targets(model: Any, config: Any) -> None:
    """Refuse a PEFT config that names a layer which the model does not have, even where others match.

    PEFT itself only trains what it finds: of `[q_proj, v_porj]` half of what was asked for. PaCA's own words, for the
    layers of MLPs and for the upper half of the blocks, are put in terms that all of PEFT's methods know.
    """
    problems = target_problems(model, config)
    if problems:
        raise PacaError("\n".join(problems))


def target_problems(model: Any, config: Any) -> list[str]:
    """Say which names in a PEFT config no layer of the model has, one message per field; words are put in terms."""
    targets = getattr(config, "target_modules", None)
    if isinstance(targets, str) and targets.lower() in MLP_WORDS:
        expand_mlp(model, config)
    if getattr(config, "layers_to_transform", None) == UPPER_HALF and not isinstance(config, PacaConfig):
        take_upper_half(model, config)
    modules = dict(model.named_modules())
    return [*_unmatched(config, modules), *_unmatched_patterns(config, modules)]


def _unmatched(config: Any, modules: dict[str, Any]) -> Iterator[str]:
    for key in NAMED:
        named = getattr(config, key, None)
        missing = [] if named is None or isinstance(named, str) else unmatched_names(named, modules)
        if key == "modules_to_save":  # PEFT takes any end of a name, not only whole parts of it
            missing = [one for one in missing if not any(name.endswith(one) for name in modules)]
        if missing:
            yield f"method.{key}: {not_found(missing, modules)}"


def _unmatched_patterns(config: Any, modules: dict[str, Any]) -> Iterator[str]:
    """Keys of patterns, names or regular expressions, that fit no layer, as PEFT matches them."""
    from peft.utils.other import get_pattern_key

    told: set[str] = set()  # PacaConfig takes keys of one pattern into the other
    for key in PATTERNS:
        patterns = set(getattr(config, key, None) or {}) - told
        missing = [one for one in sorted(patterns) if not any(get_pattern_key([one], name) == one for name in modules)]
        told |= patterns
        if missing:
            yield f"method.{key}: {not_found(missing, modules)}"
