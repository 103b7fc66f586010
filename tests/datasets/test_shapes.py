import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from panopticapi.utils import rgb2id
from PIL import Image
from pycocotools import mask as rle

from dformer.apps import shapes
from dformer.utils.errors import UserError
from dformer.visualize.files import VideoReader
from tests import run_script
from tests.datasets import check_measures

SMALL = shapes.Parameters(train=6, val=3, size=64, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shapes.generate(tmp_path_factory.mktemp("root"), SMALL, progress=False)


def _json(folder: Path, name: str) -> dict:
    return json.loads((folder / "annotations" / f"{name}.json").read_text())


def test_same_parameters_same_files(folder: Path, tmp_path: Path) -> None:
    again = shapes.generate(tmp_path, SMALL, progress=False)
    contents = [{f.relative_to(root): f.read_bytes() for f in root.glob("*/*")} for root in (again, folder)]
    assert contents[0] == contents[1] and len(contents[0]) == 3 * 9 + 4


def test_an_image_depends_on_seed_split_and_index_alone(folder: Path, tmp_path: Path) -> None:
    fewer = shapes.generate(tmp_path / "fewer", shapes.Parameters(train=2, val=1, size=64, seed=1), progress=False)
    other = shapes.generate(tmp_path / "other", shapes.Parameters(train=2, val=1, size=64, seed=2), progress=False)
    images = [sorted((f / "train").iterdir()) for f in (folder, fewer, other)]
    assert images[0][1].read_bytes() == images[1][1].read_bytes() != images[2][1].read_bytes()
    first_val = next(iter(sorted((folder / "val").iterdir())))
    assert first_val.read_bytes() != images[0][0].read_bytes()


@pytest.mark.parametrize("split", ["train", "val"])
def test_annotations_agree_with_each_other(folder: Path, split: str) -> None:
    panoptic, instances = _json(folder, f"panoptic_{split}"), _json(folder, f"instances_{split}")
    category_ids = [c["id"] for c in panoptic["categories"]]
    things = {c["id"] for c in panoptic["categories"] if c["isthing"]}
    assert category_ids != list(range(1, len(category_ids) + 1)), "ids without gaps exercise no mapping"
    assert {c["id"] for c in instances["categories"]} == things
    assert len(panoptic["images"]) == len(panoptic["annotations"]) == getattr(SMALL, split)
    assert len({a["id"] for a in instances["annotations"]}) == len(instances["annotations"])

    for image, annotation in zip(panoptic["images"], panoptic["annotations"], strict=True):
        assert image["id"] == annotation["image_id"]
        with Image.open(folder / split / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"]) == (64, 64)
        ids = rgb2id(np.asarray(Image.open(folder / f"panoptic_{split}" / annotation["file_name"])))
        semantic = np.asarray(Image.open(folder / f"semantic_{split}" / annotation["file_name"]))
        assert set(np.unique(ids)) - {0} == {s["id"] for s in annotation["segments_info"]}

        expected = np.full_like(semantic, 255)
        masks = []
        for segment in annotation["segments_info"]:
            mask = ids == segment["id"]
            expected[mask] = category_ids.index(segment["category_id"])
            check_measures(segment, mask)
            assert segment["area"] >= shapes.MIN_VISIBLE
            if segment["category_id"] in things:
                masks.append((segment["category_id"], segment["area"], mask))
        np.testing.assert_array_equal(semantic, expected)

        own = [a for a in instances["annotations"] if a["image_id"] == image["id"]]
        assert 1 <= len(own) <= 6
        for a, (category_id, area, mask) in zip(own, masks, strict=True):
            assert (a["category_id"], a["area"], a["iscrowd"]) == (category_id, area, 0)
            np.testing.assert_array_equal(rle.decode(a["segmentation"]), mask)


@pytest.mark.parametrize("name", shapes.THINGS)
@pytest.mark.parametrize("rotation", [0.0, 1.1])
def test_outline_encloses_its_area(name: str, rotation: float) -> None:
    y, x = np.mgrid[-60:60, -60:60] + 0.5
    inside = shapes.signed_distance(name, x, y, 50, rotation) < 0
    assert inside.sum() == pytest.approx(shapes.unit_area(name) * 50**2, rel=0.01)
    assert not inside[np.hypot(x, y) > 50.5].any()


def test_many_small_things() -> None:
    _, segments, classes = shapes.draw(np.random.default_rng(0), 256, small=True)
    areas = np.bincount(segments[segments >= 0])[np.array(classes) < len(shapes.THINGS)]
    assert 80 <= len(areas) <= 150
    assert areas.min() >= 12 and areas.max() < 1.2 * 15**2 and np.sqrt(np.median(areas)) > 5


def test_classes_differ_in_shape_not_in_colour() -> None:
    """Mean colours of the classes' pixels differ by less than their spread within a class."""
    colours: dict[int, list] = {i: [] for i in range(len(shapes.THINGS))}
    for seed in range(60):
        image, segments, classes = shapes.draw(np.random.default_rng(seed), 64)
        for k, cls in enumerate(classes):
            if cls in colours:
                colours[cls].append(image[segments == k].mean(0))
    means = np.array([np.mean(c, axis=0) for c in colours.values()])
    spread = min(np.std(c, axis=0).min() for c in colours.values())
    assert np.ptp(means, axis=0).max() < spread


def test_left_alone_when_there_and_regenerated_when_parameters_differ(tmp_path: Path) -> None:
    small = shapes.Parameters(train=1, val=1, size=32)
    folder = shapes.generate(tmp_path, small, progress=False)
    image = next((folder / "train").iterdir())
    image.write_bytes(b"mine")
    shapes.generate(tmp_path, small, progress=False)
    assert image.read_bytes() == b"mine"
    shapes.generate(tmp_path, shapes.Parameters(train=2, val=1, size=32), progress=False)
    assert len(list((folder / "train").iterdir())) == 2 and image.read_bytes() != b"mine"
    image.write_bytes(b"mine")
    (folder / "parameters.json").unlink()  # now it may be someone else's folder
    with pytest.raises(UserError, match="shapes"):
        shapes.generate(tmp_path, SMALL, progress=False)
    assert image.read_bytes() == b"mine"


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = partial(run_script, "datasets/shapes.py", "--root", tmp_path, "--train", 2, "--val", 1, "--size")
    assert run(32) == 0 and "2 training and 1 validation" in capsys.readouterr().out
    assert len(list((tmp_path / "shapes" / "train").iterdir())) == 2
    assert run(8) == 2 and "size=8" in capsys.readouterr().err


def test_a_film_circles_over_one_scene(tmp_path: Path) -> None:
    frames = list(shapes.film(np.random.default_rng(0), 64, 12))
    assert len(frames) == 12 and all(frame.shape == (64, 64, 3) for frame in frames)
    assert all((a != b).any() for a, b in zip(frames, frames[1:], strict=False)), "it moves"
    steps = [np.abs(a.astype(int) - b).mean() for a, b in zip(frames, [*frames[1:], frames[0]], strict=True)]
    assert max(steps) < 2 * np.mean(steps), "and comes round without a jump"
    file = tmp_path / "a.mp4"
    assert run_script("datasets/shapes.py", "--video", file, "--frames", 7, "--size", 64) == 0
    with VideoReader(file) as video:
        assert video.fps == 25 and [frame.shape for _, frame in video] == [(64, 64, 3)] * 7
    assert list(tmp_path.iterdir()) == [file]
