"""Ground truth as predictions: perfect marks on real data, and by hand what each mistake costs."""

import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_ade20k, register_all_coco
from panopticapi.evaluation import pq_compute
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dformer.apps import shapes as shapes_data
from dformer.d2.data import register_shapes
from tests.d2.evaluation.oracle import (
    Results,
    Segment,
    evaluate,
    instances_output,
    panoptic_output,
    perfect_output,
    perturb,
    read_segments,
    semantic_output,
)

NUM_CLASSES = 133  # of COCO panoptic
pytestmark = pytest.mark.usefixtures("empty_catalogs")


@pytest.fixture
def coco_panoptic(data_dir):
    register_all_coco(str(data_dir / "coco_panoptic"))


def oracle(records, change=list, num_classes=NUM_CLASSES):
    """Yield each record with the outputs of its segments, as changed by `change`."""
    for record in records:
        segments = read_segments(record)
        yield record, perfect_output(change(segments), segments[0].mask.shape, num_classes)


def assert_perfect(results: Results) -> None:
    for metrics in results.values():
        for name, value in metrics.items():
            is_limited = name.endswith(("AR1", "AR10"))  # one or ten masks an image do not find all objects
            assert is_limited or math.isnan(value) or value == pytest.approx(100, abs=1e-9), name
    for task, metric in (("panoptic_seg", "PQ"), ("segm", "AP"), ("sem_seg", "mIoU")):
        assert task not in results or not math.isnan(results[task][metric])


# Real annotations


@pytest.mark.parametrize(
    ("split", "images", "tasks"),
    [("train", 80, ("panoptic", "instance")), ("val", 20, ("panoptic", "instance", "semantic"))],
)
def test_coco_panoptic(coco_panoptic, tmp_path, split, images, tasks):
    name = f"coco_2017_{split}_panoptic"
    records = DatasetCatalog.get(name)
    assert len(records) == images
    results = evaluate(name, oracle(records), tmp_path, tasks, more=split == "val")
    assert len(results) == len(tasks)
    assert_perfect(results)


def test_coco_class_names(coco_panoptic, data_dir):
    """Names go along with ids: two equal mistakes, in the data set and in the evaluators, would hide each other."""
    metadata = MetadataCatalog.get("coco_2017_val_panoptic")
    annotations = json.loads((data_dir / "coco_panoptic/coco/annotations/panoptic_val2017.json").read_text())
    contiguous = metadata.thing_dataset_id_to_contiguous_id | metadata.stuff_dataset_id_to_contiguous_id
    categories = annotations["categories"]
    assert {i: metadata.stuff_classes[k] for i, k in contiguous.items()} == {c["id"]: c["name"] for c in categories}
    assert set(metadata.thing_dataset_id_to_contiguous_id) == {c["id"] for c in categories if c["isthing"]}


def test_predicted_crowd_is_not_punished(coco_panoptic, tmp_path):
    records = DatasetCatalog.get("coco_2017_train_panoptic")
    records = [record for record in records if any(segment["iscrowd"] for segment in record["segments_info"])]
    assert len(records) == 4
    pairs = oracle(records, lambda segments: [s._replace(is_crowd=False) for s in segments])
    assert_perfect(evaluate("coco_2017_train_panoptic", pairs, tmp_path))


@pytest.mark.parametrize(("split", "images", "empty", "crowds"), [("train", 160, 0, 11), ("val", 40, 1, 6)])
def test_coco_instances(data_dir, tmp_path, split, images, empty, crowds):
    """Official annotations, which overlap: no object is another's match, as none of a class are nearly the same."""
    register_all_coco(str(data_dir / "coco_instance"))
    records = DatasetCatalog.get(f"coco_2017_{split}")
    assert len(records) == images
    assert sum(not record["annotations"] for record in records) == empty
    assert sum(a["iscrowd"] for record in records for a in record["annotations"]) == crowds

    def pairs():
        for record in records:
            size = (record["height"], record["width"])
            visible = [a for a in record["annotations"] if not a["iscrowd"]]
            masks = [rle.decode(rle.merge(rle.frPyObjects(a["segmentation"], *size))).astype(bool) for a in visible]
            objects = [Segment(m, a["category_id"]) for m, a in zip(masks, visible, strict=True)]
            yield record, {"instances": instances_output(objects, size)}

    results = evaluate(f"coco_2017_{split}", pairs(), tmp_path)
    assert list(results) == ["segm"]
    assert_perfect(results)


@pytest.mark.parametrize(("split", "folder", "images"), [("train", "training", 1), ("val", "validation", 3)])
def test_ade20k(data_dir, tmp_path, split, folder, images):
    published = data_dir / "ade20k" / "ADEChallengeData2016"
    root = tmp_path / "ADEChallengeData2016"
    (root / "annotations_detectron2" / folder).mkdir(parents=True)
    (root / "images").symlink_to(published / "images")
    for file in (published / "annotations" / folder).iterdir():
        labels = np.array(Image.open(file))
        Image.fromarray(labels - np.uint8(1)).save(root / "annotations_detectron2" / folder / file.name)  # 0 -> 255
    register_all_ade20k(str(tmp_path))
    records = DatasetCatalog.get(f"ade20k_sem_seg_{split}")
    assert len(records) == images

    def pairs(shift):
        for record in records:
            published_file = published / "annotations" / folder / Path(record["sem_seg_file_name"]).name
            published_labels = np.array(Image.open(published_file)).astype(int)  # 1..150, 0 is void
            masks = {k: published_labels == k + 1 for k in range(150)}
            segments = [Segment(m, (k + shift) % 150, is_thing=False) for k, m in masks.items() if m.any()]
            yield record, {"sem_seg": semantic_output(segments, published_labels.shape, 150)}

    results = evaluate(f"ade20k_sem_seg_{split}", pairs(shift=0), tmp_path)
    assert list(results) == ["sem_seg"]
    assert_perfect(results)
    # the likeliest mistake: labels counted from 1
    assert evaluate(f"ade20k_sem_seg_{split}", pairs(shift=1), tmp_path)["sem_seg"]["pACC"] == 0


def test_shapes(tmp_path):
    shapes_data.generate(tmp_path, shapes_data.Parameters(train=1, val=4, size=64), progress=False)
    register_shapes(tmp_path)
    pairs = oracle(DatasetCatalog.get("shapes_val"), num_classes=len(shapes_data.CATEGORIES))
    results = evaluate("shapes_val", pairs, tmp_path / "out")
    assert list(results) == ["panoptic_seg", "segm", "sem_seg"]
    assert_perfect(results)


# Mistakes on real annotations. Image 61 has two elephants, 77 three skateboards, both have people, 315 has crowds.

ELEPHANT, SKATEBOARD, PERSON = 20, 36, 0


@pytest.fixture
def records(coco_panoptic):
    return [r for r in DatasetCatalog.get("coco_2017_val_panoptic") if r["image_id"] in (61, 77, 315)]


def counted_classes(records: list[dict[str, Any]]) -> tuple[int, int, int]:
    """Number of classes over which PQ, AP and mIoU are averaged."""
    annotated = [s for record in records for s in record["segments_info"]]
    segments = [s for s in annotated if not s["iscrowd"]]
    return (
        len({s["category_id"] for s in segments}),
        len({s["category_id"] for s in segments if s["isthing"]}),
        len({s["category_id"] for s in annotated}),
    )


def test_two_classes_swapped(records, tmp_path):
    swapped = {ELEPHANT: SKATEBOARD, SKATEBOARD: ELEPHANT}

    def change(segments):
        return [s._replace(category_id=swapped.get(s.category_id, s.category_id)) for s in segments]

    results = evaluate("coco_2017_val_panoptic", oracle(records, change), tmp_path)
    n_panoptic, n_instance, n_semantic = counted_classes(records)
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100 * (n_panoptic - 2) / n_panoptic)
    assert results["segm"]["AP"] == pytest.approx(100 * (n_instance - 2) / n_instance)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * (n_semantic - 2) / n_semantic)


def test_one_skateboard_of_three_omitted(records, tmp_path):
    pixels = {SKATEBOARD: 0, PERSON: 0}
    omitted = 0
    pairs = []
    for record in records:
        segments = read_segments(record)
        for kind in pixels:
            pixels[kind] += sum(int(s.mask.sum()) for s in segments if s.category_id == kind)
        board = next((s for s in segments if s.category_id == SKATEBOARD), None)
        if board is not None:
            omitted = int(board.mask.sum())
        kept = [s for s in segments if s is not board]  # `sem_seg` is 0, a person, where no segment is
        pairs.append((record, perfect_output(kept, segments[0].mask.shape, NUM_CLASSES)))

    results = evaluate("coco_2017_val_panoptic", pairs, tmp_path)
    n_panoptic, n_instance, n_semantic = counted_classes(records)
    pq = 2 / (2 + 0.5)  # two found, one missed
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100 * (n_panoptic - 1 + pq) / n_panoptic)
    ap = 67 / 101  # precision is 1 at the recalls 0.00 .. 0.66, of 101
    assert results["segm"]["AP"] == pytest.approx(100 * (n_instance - 1 + ap) / n_instance)
    board_iou = (pixels[SKATEBOARD] - omitted) / pixels[SKATEBOARD]
    person_iou = pixels[PERSON] / (pixels[PERSON] + omitted)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * (n_semantic - 2 + board_iou + person_iou) / n_semantic)


def test_class_does_not_matter_to_class_agnostic_pq(records, tmp_path):
    """All classes are mistaken, and a segment of two is omitted."""
    (record,) = (r for r in records if r["image_id"] == 61)
    segments = [s for s in read_segments(record) if not s.is_crowd]
    mistaken = [s._replace(category_id=(s.category_id + 1) % NUM_CLASSES, is_thing=True) for s in segments]
    output = {"panoptic_seg": panoptic_output(mistaken[1:], segments[0].mask.shape)}
    results = evaluate("coco_2017_val_panoptic", [(record, output)], tmp_path, ["panoptic"], more=True)["panoptic_seg"]
    found = len(segments) - 1
    assert results["PQ_agnostic"] == results["RQ_agnostic"] == pytest.approx(100 * found / (found + 0.5))
    assert results["SQ_agnostic"] == pytest.approx(100)
    assert results["PQ"] < 10


@pytest.mark.parametrize("split", ["train", "val"])
def test_official_tools_give_the_same_marks(coco_panoptic, data_dir, tmp_path, split):
    """Perturbed annotations, crowds among them: evaluated by us as they come, by the official tools from the files."""
    name, rng, plain = f"coco_2017_{split}_panoptic", np.random.default_rng(0), PlainPanopticQuality()

    def pairs():
        for record in DatasetCatalog.get(name):
            truth = read_segments(record)
            segments = perturb(truth, rng)
            plain.add(truth, segments)
            size, things = segments[0].mask.shape, [s for s in segments if s.is_thing]
            instances = instances_output(things, size, scores=rng.random(len(things)).tolist())
            yield record, {"panoptic_seg": panoptic_output(segments, size), "instances": instances}

    results = evaluate(name, pairs(), tmp_path, ["panoptic", "instance"])
    metadata, by_class = MetadataCatalog.get(name), plain.by_class()
    things = metadata.thing_dataset_id_to_contiguous_id.values()
    groups = {"PQ": by_class, "PQ_th": by_class.keys() & things, "PQ_st": by_class.keys() - things}
    expected = {metric: np.mean([by_class[k] for k in group]) for metric, group in groups.items()}
    expected |= {f"PQ-{metadata.stuff_classes[k]}": value for k, value in by_class.items()}
    ours = {key: x for key, x in results["panoptic_seg"].items() if key.startswith("PQ") and not math.isnan(x)}
    assert ours == pytest.approx(expected)
    coco = data_dir / "coco_panoptic" / "coco"

    truth, png_root = coco / "annotations" / f"panoptic_{split}2017.json", coco / f"panoptic_{split}2017"
    official = pq_compute(str(truth), str(tmp_path / "panoptic.json"), str(png_root))
    for suffix, group in (("", "All"), ("_th", "Things"), ("_st", "Stuff")):
        for metric in ("PQ", "SQ", "RQ"):  # panopticapi adds up in the order of its processes
            expected = 100 * official[group][metric.lower()]
            assert results["panoptic_seg"][metric + suffix] == pytest.approx(expected, rel=1e-12)
            assert 10 < expected < 90
    for category in json.loads(truth.read_text())["categories"]:
        ours = [results["panoptic_seg"][f"{metric}-{category['name']}"] for metric in ("PQ", "SQ", "RQ")]
        theirs = [100 * official["per_class"][category["id"]][metric] for metric in ("pq", "sq", "rq")]
        assert np.nan_to_num(ours).tolist() == pytest.approx(theirs, rel=1e-12)  # its absent classes have 0

    content = json.loads((coco / "annotations" / f"instances_{split}2017.json").read_text())
    for i, annotation in enumerate(content["annotations"], start=1):  # to pycocotools, id 0 is no object
        annotation["id"] = i
    (tmp_path / "truth.json").write_text(json.dumps(content))
    objects = COCO(tmp_path / "truth.json")
    evaluation = COCOeval(objects, objects.loadRes(str(tmp_path / "coco_instances_results.json")), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
    assert [results["segm"][name] for name in names] == [100 * value for value in evaluation.stats]


class PlainPanopticQuality:
    """Compute PQ of each class that has a segment, 0..100, straight from its definition, mask by mask."""

    def __init__(self) -> None:
        self.iou_sum: dict[int, float] = defaultdict(float)
        self.counts: dict[int, Counter[str]] = defaultdict(Counter)

    def add(self, truth: list[Segment], prediction: list[Segment]) -> None:
        void = ~np.any([s.mask for s in truth], axis=0)
        missed = {id(s): s for s in truth if not s.is_crowd}
        for segment in prediction:
            of_its_class = [s for s in truth if s.category_id == segment.category_id]
            counts, found = self.counts[segment.category_id], False
            for s in of_its_class:
                union = (s.mask | segment.mask) & ~(segment.mask & void)
                iou = (s.mask & segment.mask).sum() / union.sum()
                if iou > 0.5 and not s.is_crowd:
                    found = True
                    del missed[id(s)]
                    counts["found"] += 1
                    self.iou_sum[segment.category_id] += iou
            ignored = np.any([void, *(s.mask for s in of_its_class if s.is_crowd)], axis=0)
            counts["false"] += not found and (segment.mask & ignored).sum() <= 0.5 * segment.mask.sum()
        for s in missed.values():
            self.counts[s.category_id]["missed"] += 1

    def by_class(self) -> dict[int, float]:
        counted = {k: c["found"] + 0.5 * (c["false"] + c["missed"]) for k, c in self.counts.items()}
        return {k: 100 * self.iou_sum[k] / count for k, count in counted.items() if count}
