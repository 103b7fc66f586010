import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dformer.errors import UserError
from tests.datasets import load_script

script = load_script("prepare_ade20k_sem_seg")


@pytest.fixture
def root(data_dir: Path, tmp_path: Path) -> Path:
    """A copy of the published labels that may be changed."""
    source = data_dir / "ade20k" / "ADEChallengeData2016" / "annotations"
    for file in source.glob("*/*.png"):
        target = tmp_path / "ADEChallengeData2016" / "annotations" / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return tmp_path


def test_labels_are_shifted_and_void_is_255(root: Path) -> None:
    prepared = script.prepare(root, progress=False)
    files = sorted((root / "ADEChallengeData2016" / "annotations").glob("*/*.png"))
    assert len(files) == 4
    for file in files:
        published = np.asarray(Image.open(file)).astype(int)
        expected = np.where(published == 0, 255, published - 1)
        np.testing.assert_array_equal(np.asarray(Image.open(prepared / file.parent.name / file.name)), expected)
    assert not list(prepared.glob("*.partial"))


def test_prepared_labels_are_left_alone_and_missing_ones_added(root: Path) -> None:
    prepared = script.prepare(root, progress=False)
    files = sorted((prepared / "validation").iterdir())
    files[0].write_bytes(b"mine")
    script.prepare(root, progress=False)
    assert files[0].read_bytes() == b"mine"
    files[1].unlink()
    script.prepare(root, progress=False)
    assert sorted((prepared / "validation").iterdir()) == files
    assert (
        Image.open(files[0]).size == Image.open(files[0].parents[2] / "annotations" / "validation" / files[0].name).size
    )


def test_an_interrupted_split_is_not_in_place_and_goes_on(root: Path) -> None:
    broken = root / "ADEChallengeData2016" / "annotations" / "validation" / "ADE_val_00000002.png"
    good = broken.read_bytes()
    broken.write_bytes(good[: len(good) // 2])
    with pytest.raises(UserError, match=r"ADE_val_00000002\.png cannot be read"):
        script.prepare(root, progress=False)
    prepared = root / "ADEChallengeData2016" / "annotations_detectron2"
    assert not (prepared / "validation").exists()
    broken.write_bytes(good)
    script.prepare(root, progress=False)
    assert len(list((prepared / "validation").iterdir())) == 3


def test_a_label_that_is_not_ade20ks_is_named(root: Path) -> None:
    file = root / "ADEChallengeData2016" / "annotations" / "training" / "ADE_train_00000001.png"
    Image.fromarray(np.full((4, 4), 151, np.uint8)).save(file)
    with pytest.raises(UserError, match=r"ADE_train_00000001\.png is not a label map of ADE20K.*largest value 151"):
        script.prepare(root, progress=False)


def test_missing_labels_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no PNGs in .*annotations.training"):
        script.prepare(tmp_path, progress=False)
