"""Reads what a recipe's data section names as images: built-ins, `.npz` files, image folders, data sets of the Hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paca.errors import PacaError, first_few, to_install
from paca.workbench.base.messages import suggestion
from paca.workbench.data.documents import missing_path, near_files
from paca.workbench.vision.checks import check_brightness, readable
from paca.workbench.vision.folder import read_folder
from paca.workbench.vision.images import Images, from_array
from paca.workbench.vision.rgb import to_rgb
from paca.workbench.vision.section import ImagesSection


def digits() -> Images:
    """Return scikit-learn's 1,797 handwritten digits, 8 × 8 pixels in 17 shades of grey."""
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise PacaError(f"The data 'digits' comes with scikit-learn. Type: {to_install('vision')}") from error
    bunch = load_digits()
    pixels = (bunch.images * (255 / 16)).round().astype("uint8")
    return from_array(pixels, bunch.target, [str(name) for name in bunch.target_names], "digits")


BUILT_INS = {"digits": digits}


def read_images(source: str, subset: str | None, split: str, section: ImagesSection) -> Images:
    """Read one source of images.

    Args:
        source: A built-in's name, an `.npz` file, a folder with a folder per class, or a data set's name on the Hub.
        subset: The configuration of a data set that has several.
        split: Which split of a data set, which arrays of an `.npz` file, which part of a folder that has parts.
        section: The recipe's `images` section.

    Returns:
        At least one image. Every one of a file of its own was decoded once.

    Raises:
        PacaError: If something is missing or is not what was expected.
    """
    path = Path(source).expanduser()
    is_data_set = source not in BUILT_INS and path.suffix != ".npz" and not path.is_dir()
    if subset is not None and not is_data_set:
        raise PacaError(f"data.subset = {subset!r} says nothing about {source!r}; only data sets have subsets.")
    if source in BUILT_INS:
        found = BUILT_INS[source]()
    elif path.suffix == ".npz":
        found = read_npz(path, split)
    elif path.is_dir():
        found = readable(read_folder(path, split), section.most_unreadable)
    else:
        found = readable(_load_data_set(source, subset, split, section), section.most_unreadable)
    if not len(found):
        raise PacaError(f"The data {source!r} holds no images.")
    return found


def read_npz(path: Path, split: str) -> Images:
    """Read images from an `.npz` file; a PacaError if the file or an array is missing, or is not of that kind.

    It has `{split}_images` and `{split}_labels`, or `images` and `labels`, and perhaps `class_names`. Images are
    bytes, `(n, height, width, 3)` or `(n, height, width)`.
    """
    import zipfile

    import numpy as np

    if not path.is_file():
        raise PacaError(f"There is no data file {str(path)!r}{near_files(path)}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            prefix = f"{split}_" if f"{split}_images" in file else ""
            missing = [key for key in (f"{prefix}images", f"{prefix}labels") if key not in file]
            if missing:
                raise PacaError(
                    f"The data file {path} holds {', '.join(file.files) or 'nothing'}; expected {split}_images and "
                    f"{split}_labels, or images and labels."
                )
            pixels, labels = file[f"{prefix}images"], file[f"{prefix}labels"]
            names = file.get("class_names")
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise PacaError(f"The data file {path} is no whole .npz file of plain arrays: {error}") from error
    _check_arrays(path, pixels, labels, names)
    check_brightness(str(path), int(pixels.max(initial=0)) if len(pixels) else 255)
    classes = [str(name) for name in (range(int(labels.max()) + 1) if names is None else names)]
    return from_array(pixels, labels, classes, f"{path}:{prefix}images")


def _check_arrays(path: Path, pixels: Any, labels: Any, names: Any) -> None:
    problems = []
    grey_or_colour = pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[-1] == 3)
    if pixels.dtype != "uint8" or not grey_or_colour:
        problems.append(
            f"images are {pixels.dtype} of shape {pixels.shape}; expected uint8, (n, height, width, 3) or "
            f"(n, height, width){_hint(pixels)}"
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        problems.append(f"labels are {labels.dtype} of shape {labels.shape}; expected whole numbers, (n,)")
    elif len(labels) != len(pixels):
        problems.append(f"there are {len(pixels)} images and {len(labels)} labels")
    elif len(labels) and (labels.min() < 0 or (names is not None and labels.max() >= len(names))):
        last = "any number" if names is None else f"{len(names) - 1}, the last of class_names"
        problems.append(f"labels go from {labels.min()} to {labels.max()}; expected from 0 to {last}")
    if problems:
        raise PacaError(f"The data file {path}: {'; '.join(problems)}.")


def _hint(pixels: Any) -> str:
    """What to type for arrays that are images in another form, after a semicolon; nothing for other arrays."""
    if pixels.ndim == 4 and pixels.shape[-1] == 1:
        return "; save images[..., 0]"
    if pixels.ndim == 4 and pixels.shape[1] in (1, 3) and pixels.shape[-1] != 3:
        return "; save images.transpose(0, 2, 3, 1)" if pixels.shape[1] == 3 else "; save images[:, 0]"
    if pixels.dtype.kind == "b":
        return "; save images * np.uint8(255)"
    if pixels.dtype.kind not in "uif" or not pixels.size:
        return ""
    high = pixels.max()
    factor = " * 255" if high <= 1 else "" if high <= 255 else f" * (255 / {65535 if high <= 65535 else high})"
    return f"; their largest value is {high:g}: if that is white, save (images{factor}).round().astype('uint8')"


def _load_data_set(name: str, subset: str | None, split: str, section: ImagesSection) -> Images:
    import datasets

    missing = missing_path(name, "data file or folder")
    if missing is not None:
        raise PacaError(missing)
    try:
        data_set = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        hint = suggestion(name, BUILT_INS) or (near_files(Path(name)) if Path(name).parent.is_dir() else "")
        raise PacaError(
            f"The data {name!r} is no built-in ({', '.join(BUILT_INS)}), .npz file or folder{hint}, and could not be "
            f"loaded as a data set: {error}"
        ) from error
    return from_data_set(data_set, section, f"{name}:{split}")


def from_data_set(data_set: Any, section: ImagesSection, origin: str) -> Images:
    """Take images and classes out of a `datasets.Dataset`; the section names the columns where there are several.

    A PacaError if a column is missing or not the only one of its kind, or an image has no class.
    """
    from datasets import ClassLabel, Image

    features: Mapping[str, Any] = data_set.features
    image = _column(features, Image, section.image_column, "images.image_column", origin)
    label = _column(features, ClassLabel, section.label_column, "images.label_column", origin)
    labels = data_set.select_columns([label])[:][label]
    unknown = [row for row, value in enumerate(labels, start=1) if value is None or value < 0]
    if unknown:
        raise PacaError(
            f"The data set {origin!r} says no class in {len(unknown)} of {len(labels)} rows: {first_few(unknown)}; "
            "take a split whose images are labelled."
        )
    images = data_set.select_columns([image])
    return Images(
        read=lambda position: to_rgb(images[position][image]),
        name=lambda position: f"row {position + 1}",
        labels=tuple(labels),
        classes=tuple(features[label].names),
        origin=origin,
    )


def _column(features: Mapping[str, Any], kind: type, wanted: str | None, key: str, origin: str) -> str:
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    if wanted is not None:
        if wanted not in found:
            raise PacaError(
                f"{key} = {wanted!r} is no {kind.__name__} column of {origin!r}{suggestion(wanted, found)}; its "
                f"columns: {listed}."
            )
        return wanted
    if len(found) != 1:
        which = "several columns" if found else "no column"
        hint = f"; choose with {key}={found[0]}" if found else ""
        raise PacaError(f"The data set {origin!r} has {which} of kind {kind.__name__}{hint}; its columns: {listed}.")
    return found[0]
