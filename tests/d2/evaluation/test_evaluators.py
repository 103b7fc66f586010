"""Evaluators: their keys, absent classes, and by hand the cost of each mistake. On real data: test_oracle.py."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from dformer.d2.config import get_cfg
from dformer.d2.evaluation import build_evaluators
from dformer.utils.errors import UserError
from tests.d2.evaluation.oracle import (
    CAT,
    CATEGORIES,
    DOG,
    PETS,
    PREDICTED_PETS,
    SEA,
    SIZE,
    SKY,
    block,
    evaluate,
    instances_output,
    panoptic_output,
    perfect_output,
    poor_outputs,
    rest,
    semantic_output,
    write_dataset,
)

MEANS = {"panoptic_seg": "PQ", "segm": "AP", "sem_seg": "mIoU"}
pytestmark = pytest.mark.usefixtures("empty_catalogs")


def test_keys_and_range_and_labels_of_the_data_set(pets, tmp_path):
    results = evaluate("pets", zip(pets, poor_outputs(), strict=True), tmp_path / "out")
    names = [c["name"] for c in CATEGORIES]
    assert list(results["panoptic_seg"]) == [
        *(f"{metric}{suffix}" for suffix in ("", "_th", "_st") for metric in ("PQ", "SQ", "RQ")),
        *(f"{metric}-{name}" for metric in ("PQ", "SQ", "RQ") for name in names),
    ]
    recall = ["AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]
    assert list(results["segm"]) == ["AP", "AP50", "AP75", "APs", "APm", "APl", *recall, "AP-cat", "AP-dog"]
    assert list(results["sem_seg"]) == ["mIoU", "fwIoU", "mACC", "pACC", *(f"IoU-{name}" for name in names)]
    values = [value for metrics in results.values() for value in metrics.values()]
    assert all(type(value) is float and (math.isnan(value) or 0 <= value <= 100) for value in values)
    assert 0 < results["panoptic_seg"]["PQ"] < 100
    assert math.isnan(results["segm"]["APl"])  # no object is that large
    ids = np.array([c["id"] for c in CATEGORIES])
    for image, output in zip(pets, poor_outputs(), strict=True):
        written = np.array(Image.open(tmp_path / "out" / "semantic" / f"{image['image_id']:06}.png"))
        assert (written == ids[output["sem_seg"].argmax(0).numpy()]).all()


def test_no_predictions(pets, tmp_path):
    nothing = {
        "panoptic_seg": panoptic_output([], SIZE),
        "instances": instances_output([], SIZE),
        "sem_seg": semantic_output([], SIZE, 4),  # all cat
    }
    results = evaluate("pets", [(image, nothing) for image in pets], tmp_path / "out")
    assert results["panoptic_seg"]["PQ"] == results["panoptic_seg"]["SQ"] == results["panoptic_seg"]["RQ"] == 0
    assert results["segm"]["AP"] == results["segm"]["AP50"] == results["segm"]["AP-cat"] == 0
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * (200 / 2400) / 4)
    assert json.loads((tmp_path / "out" / "coco_instances_results.json").read_text()) == []


def test_nothing_annotated(tmp_path):
    images = write_dataset("empty", tmp_path / "data", [[], []])
    pairs = [(image, perfect_output([], SIZE, 4)) for image in images]
    results = evaluate("empty", pairs, tmp_path / "out", more=True)
    assert {"BoundaryAP", "mBoundaryIoU", "PQ_agnostic"} < {name for metrics in results.values() for name in metrics}
    assert all(math.isnan(value) for metrics in results.values() for value in metrics.values())


def test_absent_class_does_not_count_in_means(tmp_path):
    (image,) = write_dataset("cats", tmp_path / "data", [PETS[1]])
    results = evaluate("cats", [(image, perfect_output(PREDICTED_PETS[1], SIZE, 4))], tmp_path / "out")
    for task, mean in MEANS.items():
        assert results[task][mean] == pytest.approx(100)
        assert math.isnan(results[task][f"{mean.removeprefix('m')}-dog"])


def test_only_images_since_the_reset_count(pets, tmp_path):
    evaluators = build_evaluators(get_cfg(), "pets", tmp_path / "out")
    evaluators.process([pets[0]], [poor_outputs()[0]])
    evaluators.reset()
    evaluators.process([pets[1]], [poor_outputs()[1]])
    results = evaluators.evaluate()
    assert [results[task][mean] for task, mean in MEANS.items()] == pytest.approx([100, 100, 100])


@pytest.mark.parametrize(
    ("task", "image", "output", "named"),
    [
        ("panoptic", {"image_id": 99}, {}, r"panoptic\.json.* 99"),
        ("instance", {"image_id": 99}, {}, r"instances\.json.* 99"),
        ("panoptic", {}, {"panoptic_seg": panoptic_output([], (40, 20))}, "000001"),
        ("semantic", {}, {"sem_seg": semantic_output([], (40, 20), 4)}, "000001"),
        ("semantic", {}, {"sem_seg": torch.zeros(7, *SIZE)}, " 7 .* 4"),
    ],
)
def test_what_does_not_fit_the_data_set(pets, tmp_path, task, image, output, named):
    with pytest.raises(UserError, match=named):
        evaluate("pets", [(pets[0] | image, poor_outputs()[0] | output)], tmp_path / "out", [task])


def test_a_test_set_without_annotations(pets, tmp_path):
    """As COCO's test-dev: predictions are saved for the server."""
    file = tmp_path / "data" / "instances.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "annotations"}))
    assert evaluate("pets", zip(pets, poor_outputs(), strict=True), tmp_path / "out", ["instance"]) == {}
    assert len(json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())) == 3


# Mistakes by hand


@pytest.mark.parametrize(
    ("columns", "cat_pq", "cat_ap", "cat_iou"),
    [
        (0, 1, 1, 1),
        (2, 80 / 120, 4 / 10, 80 / 120),  # of the IoU thresholds 0.5, 0.55, ..., the first four are passed
        (5, 0, 0, 50 / 150),
    ],
)
def test_shifted_mask(pets, tmp_path, columns, cat_pq, cat_ap, cat_iou):
    """Of a cat and a dog, 100 pixels each, before a sky of 600 pixels."""
    cat, dog = block(CAT, 5, 5 + columns), block(DOG, 5, 25)
    output = perfect_output([cat, dog, rest(SKY, cat, dog)], SIZE, 4)
    results = evaluate("pets", [(pets[0], output)], tmp_path)
    sky_iou = (600 - 10 * columns) / (600 + 10 * columns)  # the cat takes and leaves 10 pixels a column
    assert results["panoptic_seg"]["PQ_th"] == pytest.approx(100 * (cat_pq + 1) / 2)
    assert results["panoptic_seg"]["PQ_st"] == pytest.approx(100 * sky_iou)
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100 * (cat_pq + 1 + sky_iou) / 3)
    assert results["segm"]["AP-cat"] == pytest.approx(100 * cat_ap)
    assert results["segm"]["AP"] == pytest.approx(100 * (cat_ap + 1) / 2)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * (cat_iou + 1 + sky_iou) / 3)
    assert results["sem_seg"]["fwIoU"] == pytest.approx(100 * (100 * cat_iou + 100 + 600 * sky_iou) / 800)
    assert results["sem_seg"]["pACC"] == pytest.approx(100 * (800 - 20 * columns) / 800)


@pytest.mark.parametrize(
    ("extra", "dog_pq", "cat_pq"),
    [
        (block(CAT, 0, 0), 1, 1),  # a cat in the crowd of cats
        (block(DOG, 0, 0), 2 / 3, 1),  # a dog in the crowd of cats is wrong: one found, one false
        (block(DOG, 0, 10), 1, 1),  # in void
        (block(DOG, 0, 14), 1, 1),  # 60 pixels in void, 40 in the sky
        (block(DOG, 0, 15), 2 / 3, 1),  # 50 pixels in void are not more than half
        (block(CAT, 0, 5), 1, 1),  # half in the crowd of cats, half in void
    ],
)
def test_crowd_and_void(tmp_path, extra, dog_pq, cat_pq):
    crowd, void = block(CAT, 0, 0, is_crowd=True), block(SEA, 0, 10)
    cat, dog = block(CAT, 10, 0), block(DOG, 10, 25)
    sky = rest(SKY, crowd, void, cat, dog)
    (image,) = write_dataset("herd", tmp_path / "data", [[crowd, cat, dog, sky]])
    kept_sky = sky._replace(mask=sky.mask & ~extra.mask)
    predicted = [cat, dog, kept_sky, extra]
    results = evaluate("herd", [(image, perfect_output(predicted, SIZE, 4))], tmp_path)
    assert results["panoptic_seg"]["PQ-dog"] == pytest.approx(100 * dog_pq)
    assert results["panoptic_seg"]["PQ-cat"] == pytest.approx(100 * cat_pq)
    assert results["panoptic_seg"]["PQ-sky"] == pytest.approx(100 * kept_sky.mask.sum() / sky.mask.sum())
    assert math.isnan(results["panoptic_seg"]["PQ-sea"])


@pytest.mark.parametrize(("kind", "dog_ap"), [(CAT, 1), (DOG, 1 / 2)])
def test_crowd_and_ap(tmp_path, kind, dog_ap):
    """The detection of the highest score, in a crowd, is ignored if of its class, else false at every recall."""
    crowd, cat, dog = block(CAT, 0, 0, is_crowd=True), block(CAT, 10, 0), block(DOG, 10, 25)
    (image,) = write_dataset("herd", tmp_path / "data", [[crowd, cat, dog]])
    instances = instances_output([block(kind, 0, 0), cat, dog], SIZE, scores=[0.9, 0.8, 0.8])
    results = evaluate("herd", [(image, {"instances": instances})], tmp_path, ["instance"])["segm"]
    assert results["AP-cat"] == pytest.approx(100)
    assert results["AP-dog"] == pytest.approx(100 * dog_ap)
