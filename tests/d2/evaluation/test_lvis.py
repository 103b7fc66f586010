"""LVIS: by its own package, or a clear word without."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from pycocotools import mask as rle

from dformer.d2.config import get_cfg
from dformer.d2.data.datasets import get_records, images_per_class
from dformer.d2.evaluation.build import build_evaluators
from dformer.utils.errors import UserError

NAMES = ["rarity", "commoner", "crowd"]


@pytest.fixture
def masks(tmp_path, empty_catalogs):
    """Three objects, of class 0, 1, 1, in an image; registered as Detectron2 does it."""
    masks = np.zeros((3, 32, 40), bool)
    masks[0, :10, :10] = masks[1, 12:30, 5:20] = masks[2, 3:30, 25:39] = True
    annotations = []
    for k, mask in enumerate(masks):
        code = rle.encode(np.asfortranarray(mask.view(np.uint8)))
        code["counts"] = code["counts"].decode()
        area = float(mask.sum())
        annotation = {"id": k + 1, "image_id": 7, "category_id": 1 + (k > 0), "segmentation": code, "area": area}
        annotations.append({**annotation, "bbox": [0, 0, 1, 1]})
    truth = {
        "images": [{"id": 7, "height": 32, "width": 40, "neg_category_ids": [3], "not_exhaustive_category_ids": []}],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": n, "frequency": "rcf"[k]} for k, n in enumerate(NAMES)],
    }
    (tmp_path / "lvis.json").write_text(json.dumps(truth))
    metadata = {"json_file": str(tmp_path / "lvis.json"), "evaluator_type": "lvis", "thing_classes": NAMES}
    MetadataCatalog.get("few_val").set(**metadata)
    objects = [{"category_id": x["category_id"] - 1} for x in annotations]
    DatasetCatalog.register("few_val", lambda: [{"annotations": objects}, {"annotations": objects[:1]}])
    return torch.from_numpy(masks)


def config() -> CfgNode:
    cfg = get_cfg()
    cfg.TEST.TASKS = ("instance",)
    return cfg


@pytest.mark.skipif(find_spec("lvis") is not None, reason="the package is installed")
def test_without_the_package_a_word_says_what_to_do(masks, tmp_path):
    with pytest.raises(UserError, match="pip install lvis"):
        build_evaluators(config(), "few_val", tmp_path)


def test_a_data_set_whose_package_is_missing_is_named(empty_catalogs):
    def load():
        import no_such_package  # noqa: F401

    DatasetCatalog.register("far", load)
    with pytest.raises(UserError, match="no_such_package"):
        get_records("far")


def test_perfect_and_missing_masks(masks, tmp_path):
    pytest.importorskip("lvis")
    evaluators = build_evaluators(config(), "few_val", tmp_path)
    found = Instances((32, 40), pred_masks=masks, scores=torch.ones(3), pred_classes=torch.tensor([0, 1, 1]))
    evaluators.process([{"image_id": 7}], [{"instances": found}])
    results = evaluators.evaluate()["segm"]
    assert [results[name] for name in ("AP", "APr", "APc")] == pytest.approx([100] * 3)
    evaluators.reset()
    evaluators.process([{"image_id": 7}], [{"instances": found[1:]}])
    results = evaluators.evaluate()["segm"]
    assert results["APr"] == 0 and results["APc"] == pytest.approx(100)
    evaluators.reset()
    evaluators.process([{"image_id": 7}], [{"instances": found[:0]}])
    assert evaluators.evaluate()["segm"]["AP"] == 0


def test_images_of_each_class_are_counted(masks):
    assert images_per_class(["few_val"], 3) == [2, 1, 0]
