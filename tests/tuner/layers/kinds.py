"""Linear layers of every kind that runs on the CPU, plain and quantized, and what they must compute."""

import copy
import hashlib
from types import SimpleNamespace

import bitsandbytes as bnb
import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
from peft import get_peft_model
from tests.toys import layers
from torch import nn
from torch.func import functional_call
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup
from transformers.pytorch_utils import Conv1D

from paca import PacaConfig, PacaLayer

IN, HIDDEN, OUT = 64, 128, 64


def _four_bits(quant_type, double):
    def quantize(layer, compute):
        bias = layer.bias is not None
        kwargs = {"compute_dtype": compute, "quant_type": quant_type, "compress_statistics": double}
        packed = bnb.nn.Linear4bit(layer.in_features, layer.out_features, bias, **kwargs)
        packed.load_state_dict(layer.state_dict())
        return packed.to("cpu")

    return quantize


def _eight_bits(layer, compute):
    packed = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, layer.bias is not None, has_fp16_weights=False)
    packed.load_state_dict(layer.state_dict())
    return packed.to("cpu")


def _half_quadratic(layer, compute):
    packing = BaseQuantizeConfig(nbits=4, group_size=32)
    return HQQLinear(copy.deepcopy(layer).requires_grad_(False), packing, compute_dtype=compute, device="cpu")


def _plain(layer, compute):
    return layer.to(compute)


def _transposed(layer, compute):
    transposed = Conv1D(layer.out_features, layer.in_features).to(compute)
    with torch.no_grad():
        transposed.weight.copy_(layer.weight.t())
        transposed.bias.zero_() if layer.bias is None else transposed.bias.copy_(layer.bias)
    return transposed


def _torchao(config):
    def quantize(layer, compute):
        packed = copy.deepcopy(layer).to(compute)
        quantize_(packed, config)
        return packed

    return quantize


TORCHAO = {
    "torchao int8": Int8WeightOnlyConfig(),
    "torchao int4": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32)),
}
PLAIN = {"Linear": _plain, "Conv1D": _transposed}
FORMATS = {
    "NF4": _four_bits("nf4", False),
    "NF4 double": _four_bits("nf4", True),
    "FP4": _four_bits("fp4", False),
    "FP4 double": _four_bits("fp4", True),
    "int8": _eight_bits,
    "HQQ": _half_quadratic,
    **{name: _torchao(config) for name, config in TORCHAO.items()},
}
LAYER_KINDS = {**PLAIN, **FORMATS}


class Toy(nn.Module):
    """Two layers of one kind to adapt, and a head."""

    def __init__(self, form, compute=torch.float32, bias=True):
        super().__init__()
        torch.manual_seed(0)
        one, two = nn.Linear(IN, HIDDEN, bias), nn.Linear(HIDDEN, OUT, bias)
        self.head = nn.Linear(OUT, 4).to(compute)
        self.one, self.two = (LAYER_KINDS[form](layer, compute) for layer in (one, two))
        if form in TORCHAO:  # as transformers leaves it
            kept = SimpleNamespace(get_apply_tensor_subclass=ConfigOf(form))
            self.hf_quantizer = SimpleNamespace(quantization_config=kept)

    def forward(self, x):
        return self.head(torch.tanh(self.two(torch.tanh(self.one(x)))))


class ConfigOf:
    """Returns torchao's configuration, and can be copied and pickled."""

    def __init__(self, form):
        self.form = form

    def __call__(self):
        return TORCHAO[self.form]


def config(**options):
    """Random updates on both layers: an adapter that changes the output."""
    return PacaConfig(**{"r": 5, "target_modules": ["one", "two"], "init_weights": False, "random_seed": 0, **options})


def adapted(form, compute=torch.float32, bias=True, **options):
    """The model, and an adapted copy of it."""
    plain = Toy(form, compute, bias)
    return plain, get_peft_model(Toy(form, compute, bias), config(**options))


def inputs(dtype=torch.float32, shape=(6, IN)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(7)).to(dtype)


def dequantized(layer):
    """The pretrained matrix `(out, in)` of a layer, by its package's own means."""
    if isinstance(layer, HQQLinear):
        return layer.dequantize()
    weight = layer.weight
    if type(weight) is nn.Parameter and weight.is_floating_point():
        return weight.t() if isinstance(layer, Conv1D) else weight
    if isinstance(weight, bnb.nn.Params4bit):
        return bnb.functional.dequantize_4bit(weight.data, weight.quant_state)
    if isinstance(weight, bnb.nn.Int8Params):
        scale = weight.SCB if layer.state.SCB is None else layer.state.SCB
        return weight.data.float() * (scale[:, None] / 127)
    return weight.dequantize()


def adapted_weights(plain, model, adapters):
    """`W₀ + Σ s·Δ` for every adapted layer, differentiable in the updates, in the widest dtype."""
    weights = {}
    for name, layer in layers(model).items():
        total = dequantized(plain.get_submodule(name)).detach().float()
        for adapter in (adapter for adapter in adapters if adapter in layer.paca_delta):
            update = layer.scaling[adapter] * layer.paca_delta[adapter].float()
            total = total.index_add(1, layer.paca_indices[adapter], update)
        weights[name] = total
    return weights


def plain_copy(plain, dtype):
    """The model with ordinary linear layers, for `functional_call`."""
    model = copy.copy(plain)
    model._modules = dict(plain._modules)
    for name in ("one", "two"):
        base = plain.get_submodule(name)
        out_features, in_features = dequantized(base).shape
        linear = nn.Linear(in_features, out_features, base.bias is not None, dtype=dtype)
        if base.bias is not None:
            linear.bias.data.copy_(base.bias)
        setattr(model, name, linear)
    return model


def reference(plain, model, x, adapters=("default",)):
    """The output of ordinary layers that hold the dequantized weights with the columns put in."""
    weights = {
        f"{name}.weight": weight.to(x.dtype) for name, weight in adapted_weights(plain, model, adapters).items()
    }
    return functional_call(plain_copy(plain, x.dtype), weights, (x,))


def packed_bytes(model):
    """A hash of all that the weights to adapt consist of, as whoever saves the model finds them."""
    found = hashlib.sha256()
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in ("one", "two") and type(module) is not nn.Sequential:
            for tensor in _parts(module):
                found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _parts(module):
    base = module.base_layer if isinstance(module, PacaLayer) else module
    if isinstance(base, HQQLinear):
        return [base.W_q, base.meta["scale"], base.meta["zero"]]
    weight = base.weight
    if isinstance(weight, bnb.nn.Params4bit):
        state = weight.quant_state
        nested = [state.state2.absmax, state.offset[None]] if state.nested else []
        return [weight.data, state.absmax, *nested]
    if isinstance(weight, bnb.nn.Int8Params):
        return [weight.data, weight.SCB if base.state.SCB is None else base.state.SCB]
    if hasattr(weight, "qdata"):
        return [weight.qdata, weight.scale]
    # A plain weight may hold columns at the moment; a state dict shows the pretrained one, or the merged one.
    return [next(value for name, value in module.state_dict().items() if name.endswith("weight"))]
