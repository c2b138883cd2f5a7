"""Has PEFT know the methods that this package brings."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from paca.errors import PacaError
from paca.workbench.base.messages import listing, shown, suggestion
from paca.workbench.base.schema import class_problems


def register_methods() -> None:
    """Register PaCA and MosLoRA, so that PEFT makes and loads their adapters by name."""
    import paca.workbench.methods.moslora  # noqa: F401 - to import it is to register it
    from paca.tuner.registration import register

    register()


# Fields of every PEFT config that say which adapter it is, rather than how it trains.
REFUSED_METHOD_KEYS = {
    "peft_type": "set method.name",
    "task_type": "it is always CAUSAL_LM",
    "base_model_name_or_path": "set model.name",
    "inference_mode": "an adapter that is trained is not in inference mode",
}


def method_config(name: str, config: Mapping[str, Any]) -> Any:
    """Make a PEFT config by the name of its method, such as `paca` or `lora`."""
    from peft import TaskType

    from paca.tuner.config import UPPER_HALF

    kind, given = known_methods()[name], dict(config)
    # PaCA's own word, which `targets.check_targets` puts in terms; the other methods' configs would refuse it.
    half = name != "paca" and given.get("layers_to_transform") == UPPER_HALF and hasattr(kind, "layers_to_transform")
    if half:
        del given["layers_to_transform"]
    made = kind(**given, task_type=TaskType.CAUSAL_LM)
    if half:
        made.layers_to_transform = UPPER_HALF
    return made


def known_methods() -> dict[str, Any]:
    """Return the config class of each method that PEFT knows, PaCA and MosLoRA included, by lower-case name."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    register_methods()
    return {str(getattr(kind, "value", kind)).lower(): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def method_problems(name: str, config: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with a recipe's `method` keys, one message per problem."""
    methods = known_methods()
    if name not in methods:
        hint = suggestion(name, methods) or listing(methods, most=100)
        return [f"method.name = {shown(name)}: PEFT knows no such method{hint}"]
    return class_problems("method", config, methods[name], REFUSED_METHOD_KEYS, lambda: method_config(name, config))


@contextlib.contextmanager
def refusals_explained(method: str, model: str) -> Iterator[None]:
    """Turn a plain `ValueError` of PEFT's into a PacaError that names the method and the model."""
    try:
        yield
    except PacaError:
        raise
    except ValueError as error:
        raise PacaError(f"The method {method!r} can't be trained on {model!r} like this: {error}") from error
