from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dformer.data.images import read_image, read_labels, read_panoptic_png, read_size, to_image
from dformer.utils.errors import UserError

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = COLOURS[..., 0]


def _save(path: Path, array: np.ndarray, **options: Any) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def test_any_kind_of_colour_becomes_rgb(tmp_path: Path) -> None:
    rgba = np.concatenate([COLOURS, GREY[..., None]], 2)
    grey = np.repeat(GREY[..., None], 3, 2)
    for array, expected in ((COLOURS, COLOURS), (rgba, COLOURS), (GREY, grey), (GREY.astype(np.uint16) * 257, grey)):
        np.testing.assert_array_equal(read_image(_save(tmp_path / "a.png", array)), expected)
    np.testing.assert_array_equal(read_image(_save(tmp_path / "a.png", COLOURS), "BGR"), COLOURS[..., ::-1])


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [(1, COLOURS), (3, COLOURS[::-1, ::-1]), (6, np.rot90(COLOURS, -1)), (8, np.rot90(COLOURS))],
)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, upright: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = _save(tmp_path / "a.png", COLOURS, exif=exif)
    np.testing.assert_array_equal(read_image(file), upright)
    assert read_size(file) == upright.shape[:2]


def test_files_that_are_no_images_are_named(tmp_path: Path, data_dir: Path) -> None:
    whole = next((data_dir / "coco_panoptic" / "coco" / "val2017").iterdir()).read_bytes()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    Image.fromarray(GREY.astype(np.float32)).save(tmp_path / "float.tiff")
    for name in ("nowhere.jpg", "text.jpg", "cut.jpg", "float.tiff"):
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(UserError, match="INPUT.FORMAT"):
        read_image(tmp_path / "text.jpg", "HSV")


def test_files_pictures_and_arrays_are_images(tmp_path: Path) -> None:
    grey = np.repeat(GREY[..., None], 3, 2)
    for source, expected in (
        (_save(tmp_path / "a.png", COLOURS), COLOURS),
        (str(tmp_path / "a.png"), COLOURS),
        (Image.fromarray(COLOURS), COLOURS),
        (Image.fromarray(GREY), grey),
        (COLOURS[::-1], COLOURS[::-1]),
        (GREY, grey),
        (GREY[..., None], grey),
    ):
        np.testing.assert_array_equal(to_image(source), expected)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (COLOURS / 255, r"uint8.*float64 from 0.* to .*255 \* image"),
        (COLOURS.astype(np.float32), "uint8.*float32.*image.astype"),
        (COLOURS.astype(np.int64) - 1, "uint8.*int64 from -1"),
        (GREY > 9, "uint8.*bool"),
        (COLOURS.transpose(2, 0, 1), r"\(3, 6, 9\).*transpose\(1, 2, 0\)"),
        (COLOURS[None], r"\(1, 6, 9, 3\).*list"),
        (np.zeros((6, 9, 4), np.uint8), r"\(6, 9, 4\).*:3"),
        (np.zeros((6, 9, 2), np.uint8), r"\(6, 9, 2\)"),
        (np.zeros((0, 9, 3), np.uint8), r"\(0, 9, 3\)"),
        (COLOURS.tolist(), "list"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_image_is_refused_with_what_was_expected(source: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        to_image(source)


def test_labels_are_values_or_palette_indices(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_labels(_save(tmp_path / "l.png", GREY)), GREY)
    picture = Image.fromarray(GREY % 4).convert("P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    picture.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "p.png"), GREY % 4)
    colours = np.arange(10, 130, 10, dtype=np.uint8).reshape(4, 3)[GREY % 4]
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), colours)
    wide = GREY.astype(np.uint16) + 1000
    np.testing.assert_array_equal(read_labels(_save(tmp_path / "w.png", wide)), wide)


def test_annotations_of_the_wrong_kind_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.png .*RGB"):
        read_labels(_save(tmp_path / "a.png", COLOURS))
    with pytest.raises(UserError, match=r"b\.png .*L"):
        read_panoptic_png(_save(tmp_path / "b.png", GREY))
