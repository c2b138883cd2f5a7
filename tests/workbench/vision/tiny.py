"""Images and networks that are small enough to train in a second. Random weights, no network."""

import numpy as np
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, set_seed

CLASSES = ("dark", "bright", "red")
SHADES = np.array([[40, 40, 40], [210, 210, 210], [210, 40, 40]])


def make_pixels(labels, generator, size=16):
    """Noisy images, each class of its own colour."""
    noise = generator.integers(-30, 30, (len(labels), size, size, 3))
    return (SHADES[np.asarray(labels)][:, None, None, :] + noise).astype(np.uint8)


def write_npz(path, generator, train=48, test=30):
    """Training and test arrays, the classes in turn, as in CIFAR's file."""
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        labels = np.arange(count) % len(CLASSES)
        arrays |= {f"{split}_images": make_pixels(labels, generator), f"{split}_labels": labels}
    np.savez(path, class_names=np.array(CLASSES), **arrays)
    return path


def write_folder(root, generator, per_class=4):
    """A folder per class, PNG files."""
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number, pixels in enumerate(make_pixels([label] * per_class, generator)):
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def save_classifier(folder):
    """A two-layer ViT with dropout, so that a run depends on the random numbers drawn in each step."""
    set_seed(0)
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        hidden_dropout_prob=0.1,
        num_labels=5,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


def recipe_content(model, data, output):
    """A recipe that runs in about a second."""
    return {
        "task": "image-classification",
        "model": {"name": str(model), "dtype": "float32"},
        "method": {"name": "paca", "r": 4, "target_modules": "all-linear"},
        "data": {"train": str(data), "eval": str(data)},
        "images": {"augment": "crop"},
        "training": {
            "max_steps": 8,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_steps": 3,
            "use_cpu": True,
            "disable_tqdm": True,
        },
        "output_dir": str(output),
        "seed": 3,
    }
