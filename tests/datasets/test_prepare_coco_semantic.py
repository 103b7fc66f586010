import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.builtin import register_all_coco
from PIL import Image

from dformer.utils.errors import UserError
from tests import load_script

script = load_script("datasets/prepare_coco_semantic.py")


def linked(data_dir: Path, folder: Path) -> Path:
    """Make a folder with a COCO to which more can be written."""
    (folder / "coco").mkdir()
    for entry in (data_dir / "coco_panoptic" / "coco").iterdir():
        (folder / "coco" / entry.name).symlink_to(entry)
    return folder


@pytest.fixture
def root(data_dir: Path, tmp_path: Path) -> Path:
    return linked(data_dir, tmp_path)


@pytest.fixture(scope="module")
def prepared(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = linked(data_dir, tmp_path_factory.mktemp("prepared"))
    script.prepare(root, progress=False)
    return root


def label_by_hand(layout: str, category: dict, categories: list[dict]) -> int:
    """Detectron2: all things 0, stuff from 1 on; Mask2Former: all classes in a row."""
    if layout == "panoptic_semseg":
        return [c["id"] for c in categories].index(category["id"])
    return 0 if category["isthing"] else 1 + [c["id"] for c in categories if not c["isthing"]].index(category["id"])


@pytest.mark.parametrize("split", ["train2017", "val2017"])
@pytest.mark.parametrize("layout", ["panoptic_stuff", "panoptic_semseg"])
def test_each_pixel_has_the_label_of_its_segment(prepared: Path, split: str, layout: str) -> None:
    coco = prepared / "coco"
    content = json.loads((coco / "annotations" / f"panoptic_{split}.json").read_text())
    categories = {c["id"]: c for c in content["categories"]}
    assert len(list((coco / f"{layout}_{split}").iterdir())) == len(content["annotations"])
    for annotation in content["annotations"]:
        colours = np.asarray(Image.open(coco / f"panoptic_{split}" / annotation["file_name"])).astype(int)
        ids = colours @ [1, 256, 65536]
        expected = np.full(ids.shape, 255)
        for segment in annotation["segments_info"]:
            category = categories[segment["category_id"]]
            expected[ids == segment["id"]] = label_by_hand(layout, category, content["categories"])
        written = Image.open(coco / f"{layout}_{split}" / annotation["file_name"])
        np.testing.assert_array_equal(np.asarray(written), expected)


@pytest.mark.usefixtures("empty_catalogs")
def test_detectron2_reads_them(prepared: Path) -> None:
    register_all_coco(str(prepared))
    assert len(DatasetCatalog.get("coco_2017_val_panoptic_stuffonly")) == 20


def test_contradictions_are_named(root: Path) -> None:
    pngs = root / "coco" / "panoptic_val2017"
    source = pngs.resolve()
    pngs.unlink()
    shutil.copytree(source, pngs)
    broken = sorted(pngs.iterdir())[-1]
    broken.chmod(0o644)
    Image.new("RGB", Image.open(broken).size, (1, 2, 3)).save(broken)
    with pytest.raises(UserError, match=broken.name):
        script.prepare(root, progress=False)
    assert not (root / "coco" / "panoptic_stuff_val2017").exists()
    with pytest.raises(UserError, match=r"panoptic_val2017\.json.*coco.annotations"):
        script.prepare(root / "nowhere", progress=False)
