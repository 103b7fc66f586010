"""Conversions: what goes from one form to another and back is what it was, on real data."""

import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.builtin import register_all_coco
from panopticapi.utils import rgb2id
from PIL import Image

from dformer.apps.convert_dataset import convert
from dformer.d2.data import register_declarations, register_file
from dformer.utils.errors import UserError
from tests import run_script

pytestmark = pytest.mark.usefixtures("empty_catalogs")


def through(name: str, folder: Path, *forms: str) -> Path:
    """Convert a data set to one form after the other; return the last folder."""
    for form in forms:
        output = folder / f"{name}-{form}"
        assert convert(name, form, output, progress=False) == []
        (name,) = register_file(output / "dataset.yaml")
    return output


def camvid(data_dir: Path) -> str:
    """Register 20 of the images, and return their name."""
    declaration = {"form": "semantic", "images": "val", "annotations": "valannot", "void": 11, "split": {"val": 20}}
    register_declarations({"cam": declaration}, data_dir / "camvid")
    return "cam_val"


def read(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("by", [["coco_panoptic"], ["coco_instances"], ["coco_panoptic", "coco_instances"]])
def test_instance_ids_come_back(data_dir: Path, tmp_path: Path, by: list[str]) -> None:
    declaration = {"form": "instance_ids", "images": "images", "annotations": "masks", "classes": ["pedestrian"]}
    register_declarations({"ped": {**declaration, "split": {"val": 20}}}, data_dir / "pennfudan")
    output = through("ped_val", tmp_path, *by, "instance_ids")
    files = {Path(record["file_name"]).stem + ".png" for record in DatasetCatalog.get("ped_val")}
    assert len(files) == 20 and files == {file.name for file in (output / "masks").iterdir()}
    for file in files:
        before, after = read(data_dir / "pennfudan" / "masks" / file), read(output / "masks" / file)
        assert before.dtype == after.dtype
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("split", ["train", "val"])
def test_instances_come_back_from_panoptic(data_dir: Path, tmp_path: Path, split: str) -> None:
    """RLE, crowds included: the same masks, classes, boxes, areas, ids and images."""
    coco = data_dir / "coco_panoptic" / "coco"
    json_file = coco / "annotations" / f"instances_{split}2017.json"
    declaration = {"form": "coco_instances", "images": f"{split}2017", "annotations": json_file}
    (name,) = register_declarations({"instances": declaration}, coco)
    output = through(name, tmp_path, "coco_panoptic", "coco_instances")
    before, after = (json.loads(f.read_text()) for f in (json_file, output / "annotations.json"))
    assert any(a["iscrowd"] for a in before["annotations"]) or split == "val"
    old, new = ({a["id"]: a for a in content["annotations"]} for content in (before, after))
    assert new == old
    for section, keys in (("images", ("id", "file_name", "height", "width")), ("categories", ("id", "name"))):
        old, new = (sorted([e[k] for k in keys] for e in content[section]) for content in (before, after))
        assert new == old


@pytest.mark.parametrize("split", ["train", "val"])
def test_panoptic_gives_the_instances_that_were_derived_from_it(data_dir: Path, tmp_path: Path, split: str) -> None:
    """The data set has an independent derivation, too."""
    register_all_coco(str(data_dir / "coco_panoptic"))
    lost = convert(f"coco_2017_{split}_panoptic", "coco_instances", tmp_path / "out", progress=False)
    assert len(lost) == 1 and "stuff" in lost[0]
    derived = json.loads((data_dir / f"coco_panoptic/coco/annotations/instances_{split}2017.json").read_text())
    own = json.loads((tmp_path / "out" / "annotations.json").read_text())

    ids = {"id": 0, "segment_id": 0}  # segment ids, unique in an image only, are kept beside the annotations' own
    content = [sorted(json.dumps(a | ids, sort_keys=True) for a in found["annotations"]) for found in (own, derived)]
    assert content[0] == content[1]


def test_panoptic_comes_back(data_dir: Path, tmp_path: Path) -> None:
    register_all_coco(str(data_dir / "coco_panoptic"))
    output = through("coco_2017_val_panoptic", tmp_path, "coco_panoptic")
    coco = data_dir / "coco_panoptic" / "coco"
    files = coco / "annotations" / "panoptic_val2017.json", output / "panoptic.json"
    before, after = ({a["image_id"]: a for a in json.loads(f.read_text())["annotations"]} for f in files)
    assert before == after
    for annotation in after.values():
        pictures = [read(f / annotation["file_name"]) for f in (coco / "panoptic_val2017", output / "panoptic")]
        np.testing.assert_array_equal(*pictures)


def test_semantic_labels_come_back(data_dir: Path, tmp_path: Path) -> None:
    output = through(camvid(data_dir), tmp_path, "coco_panoptic", "semantic")
    written = sorted((output / "labels").iterdir())
    assert len(written) == 20
    for file in written:
        before, after = read(data_dir / "camvid" / "valannot" / file.name), read(file)
        np.testing.assert_array_equal(np.where(before == 11, 255, before), after)


def test_losses_are_reported(data_dir: Path, tmp_path: Path) -> None:
    register_all_coco(str(data_dir / "coco_instance"))
    (lost,) = convert("coco_2017_val", "coco_panoptic", tmp_path / "panoptic", progress=False)
    assert "overlap" in lost
    lost = " ".join(convert("coco_2017_val", "instance_ids", tmp_path / "ids", progress=False))
    assert "overlap" in lost and "crowds" in lost and "80 classes" in lost


def test_smaller_objects_lie_on_larger_ones(tmp_path: Path) -> None:
    Image.new("RGB", (10, 10)).save(tmp_path / "a.jpg")
    squares = [[[2, 2, 6, 2, 6, 6, 2, 6]], [[0, 0, 10, 0, 10, 10, 0, 10]], [[2, 2, 6, 2, 6, 6, 2, 6]]]
    objects = ({"id": k, "category_id": 1, "segmentation": s} for k, s in enumerate(squares, start=5))
    annotations = [{"image_id": 1, **thing} for thing in objects]
    images = [{"id": 1, "file_name": "a.jpg", "height": 10, "width": 10}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    register_declarations({"own": {"form": "coco_instances", "images": ".", "annotations": "a.json"}}, tmp_path)
    lost = convert("own", "coco_panoptic", tmp_path / "out", progress=False)
    assert len(lost) == 2 and "overlap" in lost[0] and "without a pixel" in lost[1]
    ids = rgb2id(read(tmp_path / "out" / "panoptic" / "a.png"))
    expected = np.full((10, 10), 6)
    expected[2:6, 2:6] = 7  # of two of the same size, the later one
    np.testing.assert_array_equal(ids, expected)
    (annotation,) = json.loads((tmp_path / "out" / "panoptic.json").read_text())["annotations"]
    assert [s["id"] for s in annotation["segments_info"]] == [6, 7]


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("1", "2"):
        Image.new("L", (4, 4), 1).save(tmp_path / "a" / f"{name}.png")
    declaration = {"form": "semantic", "images": "a", "annotations": "a", "classes": ["a", "b"]}
    register_declarations({"own": declaration}, tmp_path)
    (tmp_path / "a" / "2.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"2\.png"):
        convert("own", "coco_panoptic", tmp_path / "out", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="out"):
        convert("own", "coco_panoptic", tmp_path / "out", progress=False)


def test_what_cannot_be_made_is_refused(data_dir: Path, tmp_path: Path) -> None:
    name = camvid(data_dir)
    for form, named in (("coco_instances", "cam"), ("instance_ids", "cam"), ("panoptic", '"coco_panoptic"')):
        with pytest.raises(UserError, match=named):
            convert(name, form, tmp_path / "out", progress=False)
    assert not list(tmp_path.iterdir())


def test_command_line(data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    sets, folder = tmp_path / "sets.yaml", data_dir / "pennfudan"
    declaration = {"form": "instance_ids", "images": f"{folder}/images", "annotations": f"{folder}/masks"}
    sets.write_text(json.dumps({"ped": {**declaration, "split": {"val": 20}}}))
    command = ["tools/convert_dataset.py", sets, "--to", "coco_panoptic", "--output", tmp_path / "out"]
    assert run_script(*command) == 2 and "--name" in capsys.readouterr().err
    assert run_script(*command, "--name", "ped_val", "--workers", 2) == 0
    printed = capsys.readouterr()
    assert "20/20" in printed.err and "dataset.yaml" in printed.out
    assert len(list((tmp_path / "out" / "panoptic").iterdir())) == 20
