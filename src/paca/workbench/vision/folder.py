"""Image folders: one folder per class."""

from pathlib import Path

from paca.errors import PacaError
from paca.workbench.vision.images import Images, from_files


def read_folder(folder: Path, split: str) -> Images:
    """Read `folder/CLASS/file` or, where there is a folder named like the split, `folder/SPLIT/CLASS/file`.

    A PacaError if there are no classes or no images.
    """
    root = folder / split if (folder / split).is_dir() else folder
    files = _image_files(root)
    if not files:
        raise PacaError(
            f"The folder {str(root)!r} holds no images in folders named after classes; expected for example "
            f"{str(root / 'cat' / '1.jpg')!r}."
        )
    named = [path.relative_to(root).parts[0] for path in files]
    classes = sorted(set(named))
    return from_files(files, [classes.index(name) for name in named], classes, str(root))


def _image_files(root: Path) -> list[Path]:
    from PIL import Image

    suffixes = set(Image.registered_extensions())
    return sorted(
        path
        for folder in root.iterdir()
        if folder.is_dir() and not folder.name.startswith(".")
        for path in folder.rglob("*")
        if path.suffix.lower() in suffixes and path.is_file()
    )
