"""The layers that a method adapts, and what it trains of them."""

from torch import nn

from paca.tuner.layers.find import PEFT_PREFIX


def trained_parameters(module: nn.Module) -> list[nn.Parameter]:
    """What is trained of a module."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model that something is trained of by a method of PEFT's, by their names in the base model."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {
        name.removeprefix(PEFT_PREFIX): module
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and trained_parameters(module)
    }
