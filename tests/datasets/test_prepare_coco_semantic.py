import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_coco
from PIL import Image

from dformer.d2.data import semantic_from_panoptic
from dformer.utils.errors import UserError
from tests.datasets import load_script

script = load_script("prepare_coco_semantic")


@pytest.fixture
def root(data_dir: Path, tmp_path: Path) -> Path:
    """A COCO to which more can be written."""
    (tmp_path / "coco").mkdir()
    for entry in (data_dir / "coco_panoptic" / "coco").iterdir():
        (tmp_path / "coco" / entry.name).symlink_to(entry)
    return tmp_path


def label_by_hand(layout: str, category: dict, categories: list[dict]) -> int:
    """Detectron2: all things 0, stuff from 1 on; Mask2Former: all classes in a row."""
    if layout == "panoptic_semseg":
        return [c["id"] for c in categories].index(category["id"])
    return 0 if category["isthing"] else 1 + [c["id"] for c in categories if not c["isthing"]].index(category["id"])


@pytest.mark.parametrize("split", ["train2017", "val2017"])
@pytest.mark.parametrize("layout", ["panoptic_stuff", "panoptic_semseg"])
def test_each_pixel_has_the_label_of_its_segment(root: Path, split: str, layout: str) -> None:
    script.prepare(root, progress=False)
    coco = root / "coco"
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
        np.testing.assert_array_equal(
            np.asarray(Image.open(coco / f"{layout}_{split}" / annotation["file_name"])), expected
        )


def test_they_are_the_labels_that_training_reads_off_the_panoptic_pngs(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DatasetCatalog, "data", {})
    monkeypatch.setattr(MetadataCatalog, "data", {})
    register_all_coco(str(root))
    script.prepare(root, progress=False)
    metadata = MetadataCatalog.get("coco_2017_val_panoptic")
    content = json.loads(Path(metadata.panoptic_json).read_text())
    for annotation in content["annotations"]:
        ids = np.asarray(Image.open(Path(metadata.panoptic_root) / annotation["file_name"]))
        labels = semantic_from_panoptic(ids, annotation["segments_info"], metadata)
        prepared = Image.open(root / "coco" / "panoptic_semseg_val2017" / annotation["file_name"])
        np.testing.assert_array_equal(labels, np.asarray(prepared))
    # What Detectron2 makes of the other layout.
    assert len(DatasetCatalog.get("coco_2017_val_panoptic_stuffonly")) == 20


def test_contradictions_are_named_and_stopped_preparation_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pngs = root / "coco" / "panoptic_val2017"
    source = pngs.resolve()
    pngs.unlink()
    shutil.copytree(source, pngs)
    broken = sorted(pngs.iterdir())[-1]
    good = broken.read_bytes()
    broken.chmod(0o644)
    Image.new("RGB", Image.open(broken).size, (1, 2, 3)).save(broken)
    with pytest.raises(UserError, match=f"{broken.name} and its json name different segments"):
        script.prepare(root, progress=False)
    assert not (root / "coco" / "panoptic_stuff_val2017").exists()
    broken.write_bytes(good)
    done: list[str] = []
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})  # in this process, where it can be watched
    prepare_file = script._prepare_file
    monkeypatch.setattr(script, "_prepare_file", lambda *a: done.append(a[3]) or prepare_file(*a))
    script.prepare(root, progress=False)
    assert broken.name in done and len(done) == 1 + 20 + 2 * 80, "of the first folder, one file was missing"


def test_missing_annotations_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no panoptic_val2017\.json or panoptic_train2017\.json in .*coco.annotations"):
        script.prepare(tmp_path, progress=False)
