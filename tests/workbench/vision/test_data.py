"""Where images come from, what is refused, and how they are held out."""

import datasets
import numpy as np
import pytest
from PIL import Image
from tests.workbench.vision.tiny import CLASSES, make_pixels, write_folder, write_npz

from paca import PacaError
from paca.workbench.recipe.recipe import DataSection
from paca.workbench.vision.data import hold_out_of_classes, read_data, spread_over_classes
from paca.workbench.vision.section import ImagesSection
from paca.workbench.vision.sources import from_data_set, read_images

SECTION = ImagesSection()
NONE = np.zeros((0, 4, 4), np.uint8)


def generator():
    return np.random.default_rng(1)


def read(source, split="train", section=SECTION):
    return read_images(str(source), None, split, section)


def test_npz_arrays_by_split(tmp_path):
    path = write_npz(tmp_path / "a.npz", generator(), train=6, test=3)
    train, test = read(path), read(path, "test")
    assert (len(train), len(test)) == (6, 3)
    assert train.labels == (0, 1, 2, 0, 1, 2)
    assert train.classes == CLASSES
    with np.load(path) as file:
        assert np.array_equal(np.asarray(train.read(4)), file["train_images"][4])
        assert not np.array_equal(np.asarray(test.read(0)), file["train_images"][0])


def test_npz_without_splits_or_names_and_in_grey(tmp_path):
    pixels = np.arange(4 * 5 * 5, dtype=np.uint8).reshape(4, 5, 5)
    np.savez(tmp_path / "a.npz", images=pixels, labels=[0, 2, 1, 0])
    found = read(tmp_path / "a.npz")
    assert found.classes == ("0", "1", "2")
    assert found.read(1).mode == "RGB"
    assert np.array_equal(np.asarray(found.read(1))[..., 2], pixels[1])


@pytest.mark.road("pictures")
@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.ones((2, 4, 4, 3)), "labels": [0, 1]}, r"images are float64 .*1: if .* save \(images \* 255\)"),
        ({"images": np.full((2, 4, 4), 9.5), "labels": [0, 1]}, r"largest value is 9\.5: .* save \(images\)\.round"),
        (
            {"images": np.full((2, 4, 4), 999, np.uint16), "labels": [0, 1]},
            r"images are uint16 .*\(images \* \(255 / 65535\)\)\.round\(\)\.astype\('uint8'\)",
        ),
        ({"images": np.ones((2, 4, 4), bool), "labels": [0, 1]}, r"save images \* np\.uint8\(255\)"),
        ({"images": np.full((2, 4, 4), "a"), "labels": [0, 1]}, r"images are <U1 of shape \(2, 4, 4\)"),
        ({"images": np.zeros((2, 3, 4, 4), np.uint8), "labels": [0, 1]}, r"save images\.transpose\(0, 2, 3, 1\)"),
        ({"images": np.zeros((2, 1, 4, 4), np.uint8), "labels": [0, 1]}, r"save images\[:, 0\]"),
        ({"images": np.zeros((2, 4, 4, 1), np.uint8), "labels": [0, 1]}, r"save images\[\.\.\., 0\]"),
        (
            {"images": np.full((2, 4, 4), 4, np.uint8), "labels": [0, 1]},
            "nearly black, their brightest value is 4 of 255",
        ),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [0.5, 1]}, "labels are float64"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [0]}, "there are 2 images and 1 labels"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [0, -1]}, "labels go from -1 to 0"),
        (
            {"images": np.zeros((2, 4, 4), np.uint8), "labels": [0, 3], "class_names": ["a", "b"]},
            "labels go from 0 to 3; expected from 0 to 1, the last of class_names",
        ),
        ({"pictures": np.zeros(1)}, "holds pictures; expected train_images and train_labels, or images and labels"),
        (
            {"images": NONE, "labels": np.zeros(0, int), "class_names": ["a"]},
            "holds no images",
        ),
    ],
)
def test_arrays_that_are_no_images(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(PacaError, match=message):
        read(tmp_path / "a.npz")


def test_a_damaged_or_missing_npz(tmp_path):
    path = write_npz(tmp_path / "shapes.npz", generator())
    with pytest.raises(PacaError, match=r"There is no data file .*shape\.npz.*did you mean .*shapes\.npz"):
        read(tmp_path / "shape.npz")
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(PacaError, match=r"is no whole \.npz file of plain arrays"):
        read(path)


def test_an_image_folder_with_and_without_parts(tmp_path):
    write_folder(tmp_path / "photos" / "train", generator())
    write_folder(tmp_path / "photos" / "test", generator(), per_class=2)
    train = read(tmp_path / "photos")
    assert train.classes == tuple(sorted(CLASSES))
    assert (len(train), len(read(tmp_path / "photos", "test"))) == (12, 6)
    assert len(read(tmp_path / "photos" / "test")) == 6
    brightness = [np.asarray(train.read(position)).mean() for position in range(12)]
    named = sorted(zip(brightness, (train.classes[label] for label in train.labels), strict=True))
    assert [name for _, name in named] == ["dark"] * 4 + ["red"] * 4 + ["bright"] * 4


def test_a_folder_without_classes(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "lonely.png")
    with pytest.raises(PacaError, match=r"holds no images in folders named after classes; expected for example"):
        read(tmp_path)


def test_digits_need_no_file():
    found = read("digits")
    assert (len(found), found.classes) == (1797, tuple("0123456789"))
    pixels = np.asarray(found.read(0))
    assert (pixels.shape, pixels.max()) == ((8, 8, 3), 239)  # the first zero's brightest of 17 shades is 15


def data_set(**extra):
    labels = [0, 1, 2, 1]
    images = [Image.fromarray(pixels) for pixels in make_pixels(labels, generator())]
    columns = {"img": images, "kind": labels, "number": [1, 2, 3, 4], **extra}
    features = datasets.Features(
        img=datasets.Image(),
        kind=datasets.ClassLabel(names=list(CLASSES)),
        number=datasets.Value("int64"),
        **{name: datasets.ClassLabel(names=["x", "y"]) for name in extra},
    )
    return datasets.Dataset.from_dict(columns, features=features)


def test_a_data_set_by_its_columns_kinds():
    found = from_data_set(data_set(), SECTION, "shapes:train")
    assert (found.classes, found.labels) == (CLASSES, (0, 1, 2, 1))
    assert found.read(1).mode == "RGB"
    assert np.asarray(found.read(1)).mean() > np.asarray(found.read(0)).mean()


def test_a_column_is_chosen_where_there_are_several():
    several = data_set(coarse=[0, 1, 0, 1])
    with pytest.raises(PacaError, match=r"several columns of kind ClassLabel; choose with images\.label_column=kind"):
        from_data_set(several, SECTION, "shapes")
    assert from_data_set(several, ImagesSection(label_column="coarse"), "shapes").classes == ("x", "y")
    with pytest.raises(PacaError, match=r"'coarsest' is no ClassLabel column.*did you mean 'coarse'"):
        from_data_set(several, ImagesSection(label_column="coarsest"), "shapes")
    with pytest.raises(PacaError, match="no column of kind Image; its columns: kind"):
        from_data_set(data_set().remove_columns("img"), SECTION, "shapes")


@pytest.mark.road("pictures")
@pytest.mark.parametrize("none", [-1, None])
def test_rows_without_a_class_are_refused(none):
    labelled = data_set()
    unlabelled = datasets.Dataset.from_dict(
        {"img": labelled[:]["img"], "kind": [0, none, 2, none]},
        features=datasets.Features(img=datasets.Image(), kind=labelled.features["kind"]),
    )
    with pytest.raises(PacaError, match="'shapes' says no class in 2 of 4 rows: 2, 4; take a split"):
        from_data_set(unlabelled, SECTION, "shapes")


def test_a_name_that_is_nothing():
    with pytest.raises(PacaError, match=r"is no built-in \(digits\), .* did you mean 'digits'.*could not be loaded"):
        read("digitz")
    with pytest.raises(PacaError, match=r"data\.subset = 'a' says nothing about 'digits'"):
        read_images("digits", "a", "train", SECTION)


def test_every_class_is_held_out_from_alike():
    labels = [0, 1, 2] * 10  # in turn, so that every third image is of one class
    kept, held = hold_out_of_classes(labels, 3)
    assert sorted(kept + held) == list(range(30))
    assert [labels[position] for position in held].count(2) == 4
    assert {[labels[position] for position in held].count(label) for label in range(3)} == {4}
    assert hold_out_of_classes(labels, None) == (list(range(30)), [])


def test_every_class_is_evaluated_alike():
    labels = [0, 1, 2] * 10
    chosen = spread_over_classes(labels, 6)
    assert sorted(labels[position] for position in chosen) == [0, 0, 1, 1, 2, 2]
    assert spread_over_classes(labels, None) == list(range(30))


def test_training_and_held_out_images(tmp_path):
    path = str(write_npz(tmp_path / "a.npz", generator(), train=12, test=6))
    data = read_data(DataSection(train=path, eval=path, eval_limit=3), SECTION)
    assert (len(data.train), len(data.held_out), data.held_out_total) == (12, 3, 6)
    data = read_data(DataSection(train=path, holdout_every=4), SECTION)
    assert (len(data.train), len(data.held_out)) == (9, 3)
    assert data.held_out.labels == (0, 1, 2)


@pytest.mark.road("pictures")
@pytest.mark.parametrize("named", [("a",), ("a", "b")])
def test_one_class_teaches_nothing(tmp_path, named):
    pixels, labels = np.full((8, 4, 4), 99, np.uint8), np.zeros(8, int)
    np.savez(tmp_path / "one.npz", images=pixels, labels=labels, class_names=np.array(named))
    with pytest.raises(PacaError, match="images of one class only, 'a', so there is nothing to tell apart"):
        read_data(DataSection(train=str(tmp_path / "one.npz"), holdout_every=4), SECTION)


def test_parts_that_do_not_go_together(tmp_path):
    path = str(write_npz(tmp_path / "a.npz", generator()))
    with pytest.raises(PacaError, match=r"data\.train and data\.eval are the same images"):
        read_data(DataSection(train=path, eval=path, eval_split="train"), SECTION)
    with pytest.raises(PacaError, match=r"has 3 classes, .* has 10; only in the first: dark, bright"):
        read_data(DataSection(train=path, eval="digits"), SECTION)
    with pytest.raises(PacaError, match="images come from one source"):
        read_data(DataSection(train=[path], holdout_every=2), SECTION)
    few = str(write_npz(tmp_path / "few.npz", generator(), train=3))
    with pytest.raises(PacaError, match="too few images of each class"):
        read_data(DataSection(train=few, holdout_every=2), SECTION)
