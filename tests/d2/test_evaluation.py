"""Evaluators: which a data set gets, what they return and write, how processes join. Values: test_oracle.py."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm
from panopticapi.evaluation import pq_compute
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dformer.d2 import get_cfg
from dformer.d2.evaluation import build_evaluators, summary_table
from dformer.d2.evaluation.instance import mask_average_precision
from dformer.d2.evaluation.semantic import confusion_matrix, semantic_metrics
from dformer.d2.launch import launch
from dformer.errors import UserError
from tests.d2.oracle import (
    CAT,
    CATEGORIES,
    DOG,
    SEA,
    SIZE,
    SKY,
    block,
    evaluate,
    instances_output,
    panoptic_output,
    perfect_output,
    register,
    rest,
    semantic_output,
    write_annotations,
)

CAT_SEGMENT, DOG_SEGMENT = block(CAT, 5, 5), block(DOG, 5, 25)
IMAGES = [
    [CAT_SEGMENT, DOG_SEGMENT, rest(SKY, CAT_SEGMENT, DOG_SEGMENT)],
    [CAT_SEGMENT, rest(SEA, CAT_SEGMENT)],
    [DOG_SEGMENT, rest(SKY, DOG_SEGMENT)],
]
# What a poor model sees: a shifted cat, a missing dog and a mistaken one.
MOVED_CAT = block(CAT, 6, 6)
SEEN = [
    [MOVED_CAT, rest(SKY, MOVED_CAT)],
    [CAT_SEGMENT, rest(SEA, CAT_SEGMENT)],
    [block(CAT, 5, 25), rest(SKY, DOG_SEGMENT)],
]


@pytest.fixture(autouse=True)
def empty_catalogs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DatasetCatalog, "data", {})
    monkeypatch.setattr(MetadataCatalog, "data", {})


@pytest.fixture
def pets(tmp_path: Path) -> list[dict[str, Any]]:
    """Model inputs of the data set "pets"."""
    register("pets", tmp_path / "data")
    return write_annotations(tmp_path / "data", IMAGES)


def outputs() -> list[dict[str, Any]]:
    return [perfect_output(segments, SIZE, 4) for segments in SEEN]


def evaluators_of(name: str, *tasks: str, folder: Path) -> DatasetEvaluators:
    cfg = get_cfg()
    cfg.TEST.TASKS = tasks
    return build_evaluators(cfg, name, folder)


# Results


def test_keys_and_range(pets: list[dict[str, Any]], tmp_path: Path) -> None:
    results = evaluate("pets", zip(pets, outputs(), strict=True), tmp_path / "out")
    names = [c["name"] for c in CATEGORIES]
    assert list(results["panoptic_seg"]) == [
        f"{metric}{suffix}" for suffix in ("", "_th", "_st") for metric in ("PQ", "SQ", "RQ")
    ] + [f"PQ-{name}" for name in names]
    assert list(results["segm"]) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "AP-cat", "AP-dog"]
    assert list(results["sem_seg"]) == ["mIoU", "fwIoU", "mACC", "pACC"] + [f"IoU-{name}" for name in names]
    values = [value for metrics in results.values() for value in metrics.values()]
    assert all(type(value) is float and (math.isnan(value) or 0 <= value <= 100) for value in values)
    assert 0 < results["panoptic_seg"]["PQ"] < 100
    assert math.isnan(results["segm"]["APl"])  # no object is that large


def test_official_tools_agree_on_the_files(pets: list[dict[str, Any]], tmp_path: Path) -> None:
    """What is written is in COCO's formats, and the official tools give it the same marks."""
    out, data = tmp_path / "out", tmp_path / "data"
    results = evaluate("pets", zip(pets, outputs(), strict=True), out)
    official = pq_compute(str(data / "panoptic.json"), str(out / "panoptic.json"), str(data / "panoptic"))
    for suffix, group in (("", "All"), ("_th", "Things"), ("_st", "Stuff")):
        for metric in ("PQ", "SQ", "RQ"):
            assert results["panoptic_seg"][metric + suffix] == pytest.approx(100 * official[group][metric.lower()])

    annotations = json.loads((data / "instances.json").read_text())
    for annotation in annotations["annotations"]:
        annotation["id"] += 1
    (data / "from_one.json").write_text(json.dumps(annotations))
    truth = COCO(data / "from_one.json")
    official = COCOeval(truth, truth.loadRes(str(out / "coco_instances_results.json")), "segm")
    official.evaluate()
    official.accumulate()
    official.summarize()
    for metric, value in zip(("AP", "AP50", "AP75", "APs"), official.stats[:4], strict=True):
        assert results["segm"][metric] == pytest.approx(100 * value), metric

    for image, output in zip(pets, outputs(), strict=True):
        written = np.array(Image.open(out / "semantic" / f"{image['image_id']:06}.png"))
        assert (written == output["sem_seg"].argmax(0).numpy()).all()


def test_no_predictions(pets: list[dict[str, Any]], tmp_path: Path) -> None:
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


def test_nothing_annotated(tmp_path: Path) -> None:
    register("empty", tmp_path / "data")
    images = write_annotations(tmp_path / "data", [[], []])
    results = evaluate("empty", [(image, perfect_output([], SIZE, 4)) for image in images], tmp_path / "out")
    assert all(math.isnan(value) for metrics in results.values() for value in metrics.values())
    assert "mIoU     -" in summary_table(results)


def test_absent_class_is_left_out_of_means(tmp_path: Path) -> None:
    register("cats", tmp_path / "data")
    (image,) = write_annotations(tmp_path / "data", [IMAGES[1]])
    results = evaluate("cats", [(image, perfect_output(SEEN[1], SIZE, 4))], tmp_path / "out")
    for task, mean, of_class in (
        ("panoptic_seg", "PQ", "PQ-dog"),
        ("segm", "AP", "AP-dog"),
        ("sem_seg", "mIoU", "IoU-dog"),
    ):
        assert results[task][mean] == pytest.approx(100)
        assert math.isnan(results[task][of_class])


def test_predicted_class_that_is_absent() -> None:
    """It is no member of the mean, but takes its pixels from the others."""
    confusion = confusion_matrix(np.array([[0, 0, 0, 255]]), np.array([[0, 0, 1, 1]]), 2, ignore_label=255)
    assert confusion.tolist() == [[2, 1], [0, 0]]
    results = semantic_metrics(confusion, ["a", "b"])
    assert results["mIoU"] == results["pACC"] == pytest.approx(200 / 3)
    assert math.isnan(results["IoU-b"])


def test_more_than_a_hundred_objects() -> None:
    """COCO's limit of 100 detections of a class in an image holds: of 101 objects one is never found."""
    masks = rle.encode(np.asfortranarray(np.eye(101, dtype=np.uint8)[None]))
    objects = [{"image_id": 1, "category_id": 3, "segmentation": m, "area": 1, "score": 1.0} for m in masks]
    truth = {
        "images": [{"id": 1, "height": 1, "width": 101}],
        "annotations": objects,
        "categories": CATEGORIES[:1],
    }
    assert mask_average_precision(truth, objects[:100], [1])["AP"] == pytest.approx(100 * 100 / 101)
    assert mask_average_precision(truth, objects, [1])["AP"] == pytest.approx(100 * 100 / 101)


def test_only_processed_images_count(pets: list[dict[str, Any]], tmp_path: Path) -> None:
    results = evaluate("pets", [(pets[1], outputs()[1])], tmp_path / "out")
    means = results["panoptic_seg"]["PQ"], results["segm"]["AP"], results["sem_seg"]["mIoU"]
    assert means == pytest.approx((100, 100, 100))


def test_reset_forgets(pets: list[dict[str, Any]], tmp_path: Path) -> None:
    evaluators = evaluators_of("pets", "panoptic", "instance", "semantic", folder=tmp_path / "out")
    evaluators.process([pets[0]], [outputs()[0]])
    evaluators.reset()
    evaluators.process([pets[1]], [outputs()[1]])
    results = evaluators.evaluate()
    means = results["panoptic_seg"]["PQ"], results["segm"]["AP"], results["sem_seg"]["mIoU"]
    assert means == pytest.approx((100, 100, 100))


def test_table() -> None:
    results = {
        "panoptic_seg": {
            **{"PQ": 51.14, "SQ": 80, "RQ": 62, "PQ_th": 57, "SQ_th": 81, "RQ_th": 69},
            **{"PQ_st": 42, "SQ_st": 79, "RQ_st": 51, "PQ-cat": 1},
        },
        "segm": {"AP": 42.6, "AP50": 65, "AP75": 45, "APs": math.nan, "APm": 46, "APl": 100, "AP-cat": 1},
    }
    lines = [line.split() for line in summary_table(results).splitlines()]
    assert ["panoptic", "PQ", "51.1", "SQ", "80.0", "RQ", "62.0"] in lines
    assert ["panoptic,", "things", "PQ", "57.0", "SQ", "81.0", "RQ", "69.0"] in lines
    assert ["panoptic,", "stuff", "PQ", "42.0", "SQ", "79.0", "RQ", "51.0"] in lines
    instance = next(line for line in lines if line[:1] == ["instance"])
    assert instance[1:] == ["AP", "42.6", "AP50", "65.0", "AP75", "45.0", "APs", "-", "APm", "46.0", "APl", "100.0"]
    assert not any("semantic" in line for line in lines)


# Which evaluators


def test_tasks_are_chosen(pets: list[dict[str, Any]], tmp_path: Path) -> None:
    pairs = [(pets[0], {"sem_seg": outputs()[0]["sem_seg"]})]
    assert list(evaluate("pets", pairs, tmp_path / "out", ["semantic"])) == ["sem_seg"]


def test_instances_without_a_json_are_left_out(pets: list[dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "data" / "instances.json").unlink()
    assert list(evaluate("pets", [(pets[0], outputs()[0])], tmp_path / "out")) == ["panoptic_seg", "sem_seg"]


def test_unknown_data_set(tmp_path: Path) -> None:
    register("pets", tmp_path / "data")
    with pytest.raises(UserError, match='did you mean "pets"'):
        evaluators_of("pet", "panoptic", folder=tmp_path)


def test_unknown_evaluator_type(tmp_path: Path) -> None:
    DatasetCatalog.register("cars", list)
    MetadataCatalog.get("cars").set(thing_classes=["car"], evaluator_type="cityscapes_instance")
    with pytest.raises(UserError, match='"cars" cannot be evaluated.*cityscapes_instance.*coco_panoptic_seg'):
        evaluators_of("cars", "instance", folder=tmp_path)


def test_nothing_to_evaluate(tmp_path: Path) -> None:
    DatasetCatalog.register("scenes", list)
    MetadataCatalog.get("scenes").set(stuff_classes=["sky"], evaluator_type="sem_seg", ignore_label=255)
    with pytest.raises(UserError, match='"scenes" has annotations for semantic, and TEST.TASKS is .*panoptic'):
        evaluators_of("scenes", "panoptic", "instance", folder=tmp_path)


def test_things_and_stuff_numbered_apart(pets: list[dict[str, Any]], tmp_path: Path) -> None:
    MetadataCatalog.get("pets").stuff_dataset_id_to_contiguous_id.update({20: 0})
    with pytest.raises(UserError, match="share class ids"):
        evaluators_of("pets", "panoptic", folder=tmp_path)


# Annotations that do not fit


def test_image_without_annotation(pets: list[dict[str, Any]], tmp_path: Path) -> None:
    stranger = {**pets[0], "image_id": 99}
    with pytest.raises(UserError, match="panoptic.json has no annotation for the image with id 99"):
        evaluate("pets", [(stranger, outputs()[0])], tmp_path / "out", ["panoptic"])
    with pytest.raises(UserError, match="instances.json has no image with id 99"):
        evaluate("pets", [(stranger, outputs()[0])], tmp_path / "out", ["instance"])


@pytest.mark.parametrize("task", ["panoptic", "semantic"])
def test_annotation_of_another_size(pets: list[dict[str, Any]], tmp_path: Path, task: str) -> None:
    turned = {"panoptic_seg": panoptic_output([], (40, 20)), "sem_seg": semantic_output([], (40, 20), 4)}
    with pytest.raises(UserError, match="000001"):
        evaluate("pets", [(pets[0], turned)], tmp_path / "out", [task])


def test_model_with_other_classes(pets: list[dict[str, Any]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="predicts 7 classes, the data set has 4"):
        evaluate("pets", [(pets[0], {"sem_seg": torch.zeros(7, *SIZE)})], tmp_path / "out", ["semantic"])


def test_labels_out_of_range() -> None:
    with pytest.raises(UserError, match=r"labels 0\.\.4, but classes are 0\.\.3 and 255 is ignored"):
        confusion_matrix(np.array([[0, 4]]), np.array([[0, 0]]), 4, ignore_label=255)


# Two processes


def evaluate_share(folder: Path, pets: list[dict[str, Any]]) -> None:
    """Process 0 has the first two images, process 1 the third."""
    rank = comm.get_rank()
    register("pets", folder / "data")
    share = slice(0, 2) if rank == 0 else slice(2, 3)
    results = evaluate("pets", zip(pets[share], outputs()[share], strict=True), folder / "joint")
    (folder / f"results_{rank}.json").write_text(json.dumps(results))


def test_two_processes(pets: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = evaluate("pets", zip(pets, outputs(), strict=True), tmp_path / "alone")
    launch(evaluate_share, (tmp_path, pets), device="cpu", num_processes=2)
    joint = json.loads((tmp_path / "results_0.json").read_text())
    assert json.loads((tmp_path / "results_1.json").read_text()) == {}
    assert joint.keys() == alone.keys()
    for task, metrics in alone.items():
        assert joint[task] == pytest.approx(metrics, nan_ok=True), task
    for file in ("panoptic.json", "coco_instances_results.json"):
        assert json.loads((tmp_path / "joint" / file).read_text()) == json.loads(
            (tmp_path / "alone" / file).read_text()
        )
