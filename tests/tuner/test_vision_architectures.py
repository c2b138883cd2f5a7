"""Vision networks of torchvision, timm and transformers from tiny configurations, adapted in all their weights."""

import copy

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from tests.toys import layers, three_steps, trained
from timm.models.deit import VisionTransformerDistilled
from torch import nn
from torchvision.models import DenseNet, VisionTransformer, mobilenet_v3_small
from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig
from torchvision.models.swin_transformer import SwinTransformer

from paca import PacaConfig, PacaError

from .layers.every import weights_of

CLASSES = 3
PIXELS = 16
LABELS = torch.tensor([0, 2])


def numbers(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


class UNet(nn.Module):
    """Down twice, up twice, each level handed across."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)])
        self.across = nn.Conv2d(16, 16, 3, padding="same", dilation=2, groups=4)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.joined = nn.Conv2d(16, 8, 3, padding=1, padding_mode="reflect")
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x):
        top = torch.relu(self.down[0](x))
        bottom = torch.relu(self.across(torch.relu(self.down[1](top))))
        joined = torch.cat([top, torch.relu(self.up(bottom))], dim=1)
        return self.head(torch.relu(self.joined(joined))).mean((2, 3))


def cnn(convolution, normalisation):
    """A plain network in one or three dimensions."""
    net = nn.Sequential()
    net.add_module("stem", convolution(2, 8, 3, padding=1))
    net.add_module("norm", normalisation(8))
    net.add_module("act", nn.GELU())
    net.add_module("depthwise", convolution(8, 8, 3, padding="same", groups=8, dilation=2))
    net.add_module("pointwise", convolution(8, 12, 1))
    net.add_module("squash", nn.Tanh())
    net.add_module("pool", nn.Flatten(2))
    net.add_module("mean", nn.AdaptiveAvgPool1d(1))
    net.add_module("flat", nn.Flatten())
    net.add_module("head", nn.Linear(12, CLASSES))
    return net


def of_transformers(model, config, **options):
    return lambda: getattr(transformers, model)(getattr(transformers, config)(num_labels=CLASSES, **options))


IMAGE = (2, 3, PIXELS, PIXELS)
WINDOWS = {
    "window_size": 4,
    "image_size": PIXELS,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [1, 2],
    "num_heads": [2, 2],
}

STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}

# A network, the shape of its input, its head, and how many layers are adapted.
ARCHITECTURES = {
    "ResNet": (
        of_transformers(
            "ResNetForImageClassification",
            "ResNetConfig",
            **STAGES,
            embedding_size=8,
            layer_type="basic",
        ),
        IMAGE,
        {"classifier.1"},
        6,
    ),
    "ConvNeXt": (
        of_transformers("ConvNextForImageClassification", "ConvNextConfig", **STAGES, num_stages=2),
        IMAGE,
        {"classifier"},
        8,
    ),
    "MobileNetV3": (lambda: mobilenet_v3_small(num_classes=CLASSES, width_mult=0.25), IMAGE, {"classifier.3"}, 53),
    "EfficientNetV2": (
        lambda: EfficientNet(
            [FusedMBConvConfig(2, 3, 1, 8, 8, 1), MBConvConfig(2, 3, 2, 8, 16, 2)], 0.0, num_classes=CLASSES
        ),
        IMAGE,
        {"classifier.1"},
        14,
    ),
    "RegNet": (
        of_transformers(
            "RegNetForImageClassification",
            "RegNetConfig",
            **STAGES,
            embedding_size=8,
            groups_width=4,
        ),
        IMAGE,
        {"classifier.1"},
        13,
    ),
    "DenseNet": (lambda: DenseNet(4, (2, 2), 8, num_classes=CLASSES), (2, 3, 32, 32), {"classifier"}, 10),
    "ViT": (
        lambda: VisionTransformer(PIXELS, 8, 2, 2, 16, 32, num_classes=CLASSES),
        IMAGE,
        {"heads.head"},
        9,
    ),
    "Swin": (of_transformers("SwinForImageClassification", "SwinConfig", **WINDOWS), IMAGE, {"classifier"}, 20),
    "DeiT": (
        lambda: VisionTransformerDistilled(
            img_size=PIXELS, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=CLASSES
        ),
        IMAGE,
        {"head", "head_dist"},
        9,
    ),
    "U-Net": (UNet, IMAGE, {"head"}, 4),
    "1-D CNN": (lambda: cnn(nn.Conv1d, nn.BatchNorm1d), (2, 2, 20), {"head"}, 3),
    "3-D CNN": (lambda: cnn(nn.Conv3d, nn.BatchNorm3d), (2, 2, 5, 6, 7), {"head"}, 3),
}


def drawn(model):
    """With weights that carry a signal from end to end: some heads begin as zeros, thin networks fade out."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
    return model


def logits(model, x):
    found = model(x)
    return getattr(found, "logits", found)


def output(model, x):
    with torch.no_grad():
        return logits(model, x)


def classify(model, x):
    optimizer = torch.optim.AdamW(trained(model), lr=2e-2)
    return three_steps(model, lambda: nn.functional.cross_entropy(logits(model, x), LABELS), optimizer)


def assert_close(got, wanted):
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:target_modules='all-weights' leaves out:UserWarning")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_train_save_load_merge(architecture, tmp_path):
    make, shape, heads, count = ARCHITECTURES[architecture]
    # Evaluated as it is trained: batch normalisation in training mode would change statistics, which are the base's.
    plain, x = drawn(make()).eval(), numbers(*shape)
    config = PacaConfig(r=2, target_modules="all-weights", clamp_rank=True, random_seed=0)
    model = get_peft_model(copy.deepcopy(plain), config).eval()
    assert len(layers(model)) == count
    assert not heads & {name.removesuffix(".weight") for name in weights_of(model)}
    assert heads <= dict(plain.named_modules()).keys()
    assert_close(output(model, x), output(plain, x))
    losses = classify(model, x)
    assert min(losses[1:]) < losses[0]
    wanted = output(model, x)
    assert (wanted - output(plain, x)).abs().max() > 1e-3

    with model.disable_adapter():
        for name, layer in weights_of(model).items():
            assert torch.equal(layer.base_weight, plain.get_parameter(name)), name
        assert_close(output(model, x), output(plain, x))
    model.save_pretrained(tmp_path)
    fresh = PeftModel.from_pretrained(copy.deepcopy(plain), tmp_path)
    assert_close(output(fresh, x), wanted)
    merged = fresh.merge_and_unload(safe_merge=True)
    assert type(merged) is type(plain)
    assert_close(output(merged, x), wanted)
    again = make().eval()
    again.load_state_dict(merged.state_dict())
    assert_close(output(again, x), wanted)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in model.unload().state_dict().items())


def swin():
    torch.manual_seed(0)
    return SwinTransformer([4, 4], 8, [2], [2], [2, 2], num_classes=CLASSES)


def test_layers_whose_weights_their_owner_reads_are_refused_by_name_and_left_out_otherwise():
    """torchvision's Swin multiplies with `qkv.weight` itself: columns of `qkv` would never have got a gradient."""
    with pytest.raises(PacaError, match=r"attn\.qkv is part of .*ShiftedWindowAttention, which reads its weight"):
        get_peft_model(swin(), PacaConfig(r=2, target_modules=["qkv"]))
    for word in ("all-linear", "all-weights"):
        with pytest.warns(UserWarning, match=rf"{word}' leaves out 4 layers .*features\.1\.0\.attn\.qkv"):
            model = get_peft_model(swin(), PacaConfig(r=2, target_modules=word))
        classify(model, numbers(*IMAGE))
