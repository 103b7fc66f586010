"""Ground truth as predictions: perfect marks on real data, and by hand what each mistake costs."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import replace
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

from dformer.d2.data import register_shapes
from tests import load_script
from tests.d2.evaluation.oracle import (
    CAT,
    DOG,
    SEA,
    SIZE,
    SKY,
    Results,
    Segment,
    block,
    evaluate,
    instances_output,
    panoptic_output,
    perfect_output,
    read_segments,
    register,
    rest,
    semantic_output,
    write_annotations,
)

shapes_script = load_script("datasets/shapes.py")

NUM_CLASSES = 133  # of COCO panoptic
Pairs = Iterator[tuple[dict[str, Any], dict[str, Any]]]


@pytest.fixture(autouse=True)
def empty_catalogs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Data set names are free, so that Detectron2's own can be registered with the test's root."""
    monkeypatch.setattr(DatasetCatalog, "data", {})
    monkeypatch.setattr(MetadataCatalog, "data", {})


@pytest.fixture
def coco_panoptic(data_dir: Path) -> None:
    register_all_coco(str(data_dir / "coco_panoptic"))


def oracle(records: list[dict[str, Any]]) -> Pairs:
    for record in records:
        segments = read_segments(record)
        yield record, perfect_output(segments, segments[0].mask.shape, NUM_CLASSES)


def assert_perfect(results: Results) -> None:
    for metrics in results.values():
        for name, value in metrics.items():
            if name.endswith(("AR1", "AR10")):  # one or ten masks an image do not find all objects
                continue
            assert math.isnan(value) or value == pytest.approx(100, abs=1e-9), name
    for task, metric in (("panoptic_seg", "PQ"), ("segm", "AP"), ("sem_seg", "mIoU")):
        assert task not in results or not math.isnan(results[task][metric])


# Real annotations


@pytest.mark.parametrize(
    ("split", "images", "tasks"),
    [("train", 80, ("panoptic", "instance")), ("val", 20, ("panoptic", "instance", "semantic"))],
)
def test_coco_panoptic(coco_panoptic: None, tmp_path: Path, split: str, images: int, tasks: tuple[str, ...]) -> None:
    name = f"coco_2017_{split}_panoptic"
    records = DatasetCatalog.get(name)
    assert len(records) == images
    results = evaluate(name, oracle(records), tmp_path, tasks, more=split == "val")
    assert len(results) == len(tasks)
    assert_perfect(results)


def test_coco_class_names(coco_panoptic: None, data_dir: Path) -> None:
    """Names go along with ids: two equal mistakes, in the data set and in the evaluators, would hide each other."""
    metadata = MetadataCatalog.get("coco_2017_val_panoptic")
    annotations = json.loads((data_dir / "coco_panoptic/coco/annotations/panoptic_val2017.json").read_text())
    contiguous = metadata.thing_dataset_id_to_contiguous_id | metadata.stuff_dataset_id_to_contiguous_id
    assert {i: metadata.stuff_classes[k] for i, k in contiguous.items()} == {
        c["id"]: c["name"] for c in annotations["categories"]
    }
    assert set(metadata.thing_dataset_id_to_contiguous_id) == {
        c["id"] for c in annotations["categories"] if c["isthing"]
    }


def test_predicted_crowd_is_not_punished(coco_panoptic: None, tmp_path: Path) -> None:
    records = [
        r
        for r in DatasetCatalog.get("coco_2017_train_panoptic")
        if any(segment["iscrowd"] for segment in r["segments_info"])
    ]
    assert len(records) == 4

    def pairs() -> Pairs:
        for record in records:
            segments = [replace(s, iscrowd=False) for s in read_segments(record)]
            yield record, perfect_output(segments, segments[0].mask.shape, NUM_CLASSES)

    assert_perfect(evaluate("coco_2017_train_panoptic", pairs(), tmp_path))


@pytest.mark.parametrize(("split", "images", "empty", "crowds"), [("train", 160, 0, 11), ("val", 40, 1, 6)])
def test_coco_instances(data_dir: Path, tmp_path: Path, split: str, images: int, empty: int, crowds: int) -> None:
    """Official annotations, which overlap: no object is another's match, as none of a class are nearly the same."""
    register_all_coco(str(data_dir / "coco_instance"))
    records = DatasetCatalog.get(f"coco_2017_{split}")
    assert len(records) == images
    assert sum(not record["annotations"] for record in records) == empty
    assert sum(a["iscrowd"] for record in records for a in record["annotations"]) == crowds

    def pairs() -> Pairs:
        for record in records:
            size = (record["height"], record["width"])
            seen = [a for a in record["annotations"] if not a["iscrowd"]]
            masks = [rle.decode(rle.merge(rle.frPyObjects(a["segmentation"], *size))).astype(bool) for a in seen]
            objects = [Segment(m, a["category_id"], True) for m, a in zip(masks, seen, strict=True)]
            yield record, {"instances": instances_output(objects, size)}

    results = evaluate(f"coco_2017_{split}", pairs(), tmp_path)
    assert list(results) == ["segm"]
    assert_perfect(results)


@pytest.mark.parametrize(("split", "folder", "images"), [("train", "training", 1), ("val", "validation", 3)])
def test_ade20k(data_dir: Path, tmp_path: Path, split: str, folder: str, images: int) -> None:
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

    def pairs(shift: int) -> Pairs:
        for record in records:
            published_file = published / "annotations" / folder / Path(record["sem_seg_file_name"]).name
            published_labels = np.array(Image.open(published_file)).astype(int)  # 1..150, 0 is void
            masks = {k: published_labels == k + 1 for k in range(150)}
            segments = [Segment(m, (k + shift) % 150, False) for k, m in masks.items() if m.any()]
            yield record, {"sem_seg": semantic_output(segments, published_labels.shape, 150)}

    results = evaluate(f"ade20k_sem_seg_{split}", pairs(shift=0), tmp_path)
    assert list(results) == ["sem_seg"]
    assert_perfect(results)
    # the likeliest mistake: labels counted from 1
    assert evaluate(f"ade20k_sem_seg_{split}", pairs(shift=1), tmp_path)["sem_seg"]["pACC"] == 0


def test_shapes(tmp_path: Path) -> None:
    shapes_script.generate(tmp_path, shapes_script.Parameters(train=1, val=4, size=64), progress=False)
    register_shapes(tmp_path)

    def pairs() -> Pairs:
        for record in DatasetCatalog.get("shapes_val"):
            yield record, perfect_output(read_segments(record), (64, 64), len(shapes_script.CATEGORIES))

    results = evaluate("shapes_val", pairs(), tmp_path / "out")
    assert list(results) == ["panoptic_seg", "segm", "sem_seg"]
    assert_perfect(results)


# Mistakes on real annotations. Image 61 has two elephants, 77 three skateboards, both have people, 315 has crowds.

ELEPHANT, SKATEBOARD, PERSON = 20, 36, 0


@pytest.fixture
def records(coco_panoptic: None) -> list[dict[str, Any]]:
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


def test_two_classes_swapped(records: list[dict[str, Any]], tmp_path: Path) -> None:
    swapped = {ELEPHANT: SKATEBOARD, SKATEBOARD: ELEPHANT}

    def pairs() -> Pairs:
        for record in records:
            segments = read_segments(record)
            segments = [replace(s, category_id=swapped.get(s.category_id, s.category_id)) for s in segments]
            yield record, perfect_output(segments, segments[0].mask.shape, NUM_CLASSES)

    results = evaluate("coco_2017_val_panoptic", pairs(), tmp_path)
    n_panoptic, n_instance, n_semantic = counted_classes(records)
    assert results["panoptic_seg"]["PQ"] == pytest.approx(100 * (n_panoptic - 2) / n_panoptic)
    assert results["segm"]["AP"] == pytest.approx(100 * (n_instance - 2) / n_instance)
    assert results["sem_seg"]["mIoU"] == pytest.approx(100 * (n_semantic - 2) / n_semantic)


def test_one_skateboard_of_three_omitted(records: list[dict[str, Any]], tmp_path: Path) -> None:
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


def test_class_does_not_matter_to_class_agnostic_pq(records: list[dict[str, Any]], tmp_path: Path) -> None:
    """All classes are mistaken, and a segment of two is omitted."""
    (record,) = (r for r in records if r["image_id"] == 61)
    segments = [s for s in read_segments(record) if not s.iscrowd]
    mistaken = [replace(s, category_id=(s.category_id + 1) % NUM_CLASSES, isthing=True) for s in segments]
    output = {"panoptic_seg": panoptic_output(mistaken[1:], segments[0].mask.shape)}
    results = evaluate("coco_2017_val_panoptic", [(record, output)], tmp_path, ["panoptic"], more=True)["panoptic_seg"]
    found = len(segments) - 1
    assert results["PQ_agnostic"] == results["RQ_agnostic"] == pytest.approx(100 * found / (found + 0.5))
    assert results["SQ_agnostic"] == pytest.approx(100)
    assert results["PQ"] < 10


@pytest.mark.parametrize("split", ["train", "val"])
def test_official_tools_give_the_same_marks(coco_panoptic: None, data_dir: Path, tmp_path: Path, split: str) -> None:
    """Perturbed annotations, crowds among them: evaluated by us as they come, by the official tools from the files."""
    name, rng = f"coco_2017_{split}_panoptic", np.random.default_rng(0)

    def pairs() -> Pairs:
        for record in DatasetCatalog.get(name):
            segments = perturb(read_segments(record), rng)
            size, things = segments[0].mask.shape, [s for s in segments if s.isthing]
            instances = instances_output(things, size, scores=rng.random(len(things)).tolist())
            yield record, {"panoptic_seg": panoptic_output(segments, size), "instances": instances}

    results = evaluate(name, pairs(), tmp_path, ["panoptic", "instance"])
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


@pytest.mark.parametrize("seed", range(3))
def test_pq_of_perturbed_annotations(records: list[dict[str, Any]], tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    annotated = [read_segments(record) for record in records]
    predicted = [perturb(segments, rng) for segments in annotated]
    pairs = [
        (record, {"panoptic_seg": panoptic_output(segments, segments[0].mask.shape)})
        for record, segments in zip(records, predicted, strict=True)
    ]
    results = evaluate("coco_2017_val_panoptic", pairs, tmp_path, ["panoptic"])["panoptic_seg"]
    names = MetadataCatalog.get("coco_2017_val_panoptic").stuff_classes
    expected = plain_panoptic_quality(annotated, predicted)
    assert 5 < results["PQ"] < 80
    assert results["PQ"] == pytest.approx(np.mean(list(expected.values())))
    assert {name: results[f"PQ-{name}"] for name in names if not math.isnan(results[f"PQ-{name}"])} == pytest.approx(
        {names[k]: v for k, v in expected.items()}
    )
    things = {s.category_id for segments in annotated + predicted for s in segments if s.isthing}
    assert results["PQ_th"] == pytest.approx(np.mean([v for k, v in expected.items() if k in things]))
    assert results["PQ_st"] == pytest.approx(np.mean([v for k, v in expected.items() if k not in things]))


def perturb(segments: list[Segment], rng: np.random.Generator) -> list[Segment]:
    """Segments dropped, mistaken for each other's class, moved, and squares added, crowds and void included."""
    kinds = sorted({(s.category_id, s.isthing) for s in segments})
    size = segments[0].mask.shape
    owner = np.full(size, -1)
    classes: list[tuple[int, bool]] = []
    for segment in segments:
        if rng.random() < 0.15:
            continue
        shift = rng.integers(-4, 5, size=2) if rng.random() < 0.5 else (0, 0)
        owner[np.roll(segment.mask, shift, (0, 1))] = len(classes)
        classes.append(
            kinds[rng.integers(len(kinds))] if rng.random() < 0.2 else (segment.category_id, segment.isthing)
        )
    for _ in range(5):
        row, column = rng.integers(size[0] - 40), rng.integers(size[1] - 40)
        owner[row : row + 40, column : column + 40] = len(classes)
        classes.append(kinds[rng.integers(len(kinds))])
    masks = [owner == i for i in range(len(classes))]
    return [Segment(m, *c) for m, c in zip(masks, classes, strict=True) if m.any()]


def plain_panoptic_quality(annotated: list[list[Segment]], predicted: list[list[Segment]]) -> dict[int, float]:
    """PQ of each class that has a segment, 0..100, straight from its definition, mask by mask."""
    iou_sum: dict[int, float] = defaultdict(float)
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for truth, prediction in zip(annotated, predicted, strict=True):
        void = ~np.any([s.mask for s in truth], axis=0)
        missed = {id(s) for s in truth if not s.iscrowd}
        for segment in prediction:
            of_its_class = [s for s in truth if s.category_id == segment.category_id]
            found = False
            for s in of_its_class:
                union = (s.mask | segment.mask) & ~(segment.mask & void)
                iou = (s.mask & segment.mask).sum() / union.sum()
                if iou > 0.5 and not s.iscrowd:
                    found = True
                    missed.remove(id(s))
                    counts[segment.category_id]["found"] += 1
                    iou_sum[segment.category_id] += iou
            ignored = np.any([void, *(s.mask for s in of_its_class if s.iscrowd)], axis=0)
            if not found and (segment.mask & ignored).sum() <= 0.5 * segment.mask.sum():
                counts[segment.category_id]["false"] += 1
        for s in truth:
            if id(s) in missed:
                counts[s.category_id]["missed"] += 1
    return {k: 100 * iou_sum[k] / (c["found"] + 0.5 * (c["false"] + c["missed"])) for k, c in counts.items()}


# Mistakes on a small data set: all by hand


@pytest.fixture
def pets(tmp_path: Path) -> list[dict[str, Any]]:
    """One image: a cat and a dog, 100 pixels each, before a sky of 600 pixels."""
    cat, dog = block(CAT, 5, 5), block(DOG, 5, 25)
    register("pets", tmp_path / "data")
    return write_annotations(tmp_path / "data", [[cat, dog, rest(SKY, cat, dog)]])


@pytest.mark.parametrize(
    ("columns", "cat_pq", "cat_ap", "cat_iou"),
    [
        (0, 1, 1, 1),
        (2, 80 / 120, 4 / 10, 80 / 120),  # of the IoU thresholds 0.5, 0.55, ..., the first four are passed
        (5, 0, 0, 50 / 150),
    ],
)
def test_shifted_mask(
    pets: list[dict[str, Any]], tmp_path: Path, columns: int, cat_pq: float, cat_ap: float, cat_iou: float
) -> None:
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
def test_crowd_and_void(tmp_path: Path, extra: Segment, dog_pq: float, cat_pq: float) -> None:
    crowd, void = block(CAT, 0, 0, iscrowd=True), block(SEA, 0, 10)
    cat, dog = block(CAT, 10, 0), block(DOG, 10, 25)
    sky = rest(SKY, crowd, void, cat, dog)
    register("herd", tmp_path / "data")
    (image,) = write_annotations(tmp_path / "data", [[crowd, cat, dog, sky]])
    kept_sky = replace(sky, mask=sky.mask & ~extra.mask)
    predicted = [cat, dog, kept_sky, extra]
    results = evaluate("herd", [(image, perfect_output(predicted, SIZE, 4))], tmp_path)
    assert results["panoptic_seg"]["PQ-dog"] == pytest.approx(100 * dog_pq)
    assert results["panoptic_seg"]["PQ-cat"] == pytest.approx(100 * cat_pq)
    assert results["panoptic_seg"]["PQ-sky"] == pytest.approx(100 * kept_sky.mask.sum() / sky.mask.sum())
    assert math.isnan(results["panoptic_seg"]["PQ-sea"])


@pytest.mark.parametrize(("kind", "dog_ap"), [(CAT, 1), (DOG, 1 / 2)])
def test_crowd_and_ap(tmp_path: Path, kind: int, dog_ap: float) -> None:
    """A surer detection in the crowd is ignored if it is of the crowd's class, else a false one at every recall."""
    crowd, cat, dog = block(CAT, 0, 0, iscrowd=True), block(CAT, 10, 0), block(DOG, 10, 25)
    register("herd", tmp_path / "data")
    (image,) = write_annotations(tmp_path / "data", [[crowd, cat, dog]])
    instances = instances_output([block(kind, 0, 0), cat, dog], SIZE, scores=[0.9, 0.8, 0.8])
    results = evaluate("herd", [(image, {"instances": instances})], tmp_path, ["instance"])["segm"]
    assert results["AP-cat"] == pytest.approx(100)
    assert results["AP-dog"] == pytest.approx(100 * dog_ap)
