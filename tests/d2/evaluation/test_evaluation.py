"""Evaluators: which a data set gets, what they return and write, how processes join. Values: test_oracle.py."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils import comm
from PIL import Image

from dformer.d2.config import get_cfg
from dformer.d2.engine.launch import launch
from dformer.d2.evaluation import build_evaluators, evaluate_saved
from dformer.utils.errors import UserError
from tests.d2.evaluation.oracle import (
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


def test_semantic_pictures_have_the_labels_of_the_data_set(pets: list[dict[str, Any]], tmp_path: Path) -> None:
    evaluate("pets", zip(pets, outputs(), strict=True), tmp_path / "out", ["semantic"])
    for image, output in zip(pets, outputs(), strict=True):
        written = np.array(Image.open(tmp_path / "out" / "semantic" / f"{image['image_id']:06}.png"))
        ids = np.array([c["id"] for c in CATEGORIES])
        assert (written == ids[output["sem_seg"].argmax(0).numpy()]).all()


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
    with pytest.raises(UserError, match="pets.*stuff_dataset_id_to_contiguous_id"):
        evaluators_of("pets", "panoptic", folder=tmp_path)


def test_classes_without_names(pets: list[dict[str, Any]], tmp_path: Path) -> None:
    MetadataCatalog.get("pets").stuff_classes.pop()
    with pytest.raises(UserError, match="pets.*stuff_classes"):
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


# Saved predictions

SCENES = [np.array([[0, 1], [255, 2]]), np.array([[2, 1]])]


def register_scenes(folder: Path, name: str = "scenes", image_files: tuple[str, str] = ("a/1.jpg", "b/1.jpg")) -> None:
    """A semantic set with the labels `SCENES`, whose images, if only in their names, lie in several folders."""
    records = []
    for image_file, labels in zip(image_files, SCENES, strict=True):
        label_file = folder / "labels" / f"{image_file.replace('/', '_')}.png"
        label_file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels.astype(np.uint8)).save(label_file)
        records.append({"file_name": str(folder / "images" / image_file), "sem_seg_file_name": str(label_file)})
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=["x", "y", "z"], evaluator_type="sem_seg", ignore_label=255)


def evaluate_scenes(name: str, folder: Path) -> dict[str, dict[str, float]]:
    """Results of correct predictions, of class x where void is annotated."""
    scores = [torch.eye(3)[np.where(labels == 255, 0, labels)].permute(2, 0, 1) for labels in SCENES]
    pairs = zip(DatasetCatalog.get(name), ({"sem_seg": s} for s in scores), strict=True)
    return evaluate(name, pairs, folder, ["semantic"])


def test_images_of_one_name_in_several_folders(tmp_path: Path) -> None:
    register_scenes(tmp_path)
    assert evaluate_scenes("scenes", tmp_path / "out" / "scenes")["sem_seg"]["pACC"] == 100
    found = {str(path.relative_to(tmp_path / "out")): Image.open(path).size for path in tmp_path.glob("out/**/*.png")}
    assert found == {"scenes/semantic/a/1.png": (2, 2), "scenes/semantic/b/1.png": (2, 1)}
    cfg = get_cfg()
    assert evaluate_saved(cfg, "scenes", tmp_path / "out")["sem_seg"]["pACC"] == 100


def test_images_that_differ_in_their_ending_only(tmp_path: Path) -> None:
    register_scenes(tmp_path, image_files=("1.jpg", "1.png"))
    with pytest.raises(UserError, match=r"1\.jpg and .*1\.png would have one prediction file, 1\.png"):
        evaluators_of("scenes", "semantic", folder=tmp_path)


@pytest.mark.parametrize(
    ("name", "ids", "values"),
    [
        ("ade20k_sem_seg_some", None, [2, 3]),  # as published: 0 is void
        ("streets", {0: 30, 1: 20, 2: 1000}, [20, 1000]),
        ("scenes", None, [1, 2]),
    ],
)
def test_label_values(tmp_path: Path, name: str, ids: dict[int, int] | None, values: list[int]) -> None:
    register_scenes(tmp_path, name)
    if ids:
        MetadataCatalog.get(name).stuff_dataset_id_to_contiguous_id = {i: k for k, i in ids.items()}
    evaluate_scenes(name, tmp_path / "out" / name)
    picture = np.array(Image.open(tmp_path / "out" / name / "semantic" / "b" / "1.png"))
    assert sorted(np.unique(picture)) == values
    assert evaluate_saved(get_cfg(), name, tmp_path / "out")["sem_seg"]["pACC"] == 100


@pytest.fixture
def saved(pets: list[dict[str, Any]], tmp_path: Path) -> dict[str, Any]:
    """Results of predictions that lie in "out/pets"; of two detections of a class, as sure."""
    predictions = outputs()
    predictions[0]["instances"] = instances_output([MOVED_CAT, DOG_SEGMENT], SIZE, scores=[1 / 3, 0.1])
    pairs = zip(pets, predictions, strict=True)
    results = evaluate("pets", pairs, tmp_path / "out" / "pets", more=True)
    for image in pets:  # what loading finds
        (tmp_path / "data" / image["file_name"]).touch()
    return results


def evaluate_again(root: Path) -> dict[str, dict[str, float]]:
    cfg = get_cfg()
    cfg.TEST.BOUNDARY = cfg.TEST.CLASS_AGNOSTIC = True
    return evaluate_saved(cfg, "pets", root)


def test_saved_predictions_get_the_same_marks(saved: dict[str, Any], tmp_path: Path) -> None:
    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}

    before = files()
    assert len(before) == 3 + 3 + 2
    assert json.dumps(evaluate_again(tmp_path / "out")) == json.dumps(saved)  # to the last digit, nan included
    assert files() == before  # none was written


def edit(file: Path, change: Callable[[Any], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def paint(file: Path, value: int | tuple[int, int, int]) -> None:
    picture = Image.open(file)
    picture.paste(value, (0, 0, 3, 3))
    picture.save(file)


def resize(file: Path) -> None:
    Image.open(file).resize((20, 40), Image.Resampling.NEAREST).save(file)


PANOPTIC, INSTANCES, SEGMENTS = "panoptic.json", "coco_instances_results.json", "panoptic/000002.png"
LABELS = "semantic/000002.png"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: out.rename(out.with_name("dogs")), r'no predictions for data set "pets".*out/pets.*--predictions'),
        (lambda out: (out / PANOPTIC).unlink(), r"panoptic\.json.*TEST\.TASKS"),
        (lambda out: (out / PANOPTIC).write_text("{"), r"panoptic\.json cannot be read as JSON"),
        (lambda out: (out / PANOPTIC).write_text("[]"), r"panoptic\.json is not in COCO's panoptic format"),
        (
            lambda out: edit(out / PANOPTIC, lambda c: c["annotations"][1].pop("file_name")),
            r"panoptic\.json is not in COCO's panoptic format: KeyError\('file_name'\)",
        ),
        (lambda out: edit(out / PANOPTIC, lambda c: c["annotations"].pop()), r"panoptic\.json.* 1 missing, such as 3"),
        (
            lambda out: edit(out / PANOPTIC, lambda c: c["annotations"].append({**c["annotations"][0], "image_id": 9})),
            r"panoptic\.json.* 1 not of the data set, such as 9",
        ),
        (
            lambda out: edit(out / PANOPTIC, lambda c: c["annotations"].append(c["annotations"][0])),
            "several annotations for one image",
        ),
        (
            lambda out: edit(out / PANOPTIC, lambda c: c["annotations"][1]["segments_info"].pop()),
            r"000002\.png.*segment with ID 2 is presented in PNG and not presented in JSON",
        ),
        (
            lambda out: edit(out / PANOPTIC, lambda c: c["annotations"][1]["segments_info"][0].update(category_id=5)),
            r"000002\.png.*unknown category_id 5",
        ),
        (lambda out: (out / SEGMENTS).unlink(), r"panoptic/000002\.png cannot be read"),
        (lambda out: (out / SEGMENTS).write_text("x"), r"panoptic/000002\.png cannot be read"),
        (
            lambda out: (out / SEGMENTS).write_bytes((out / SEGMENTS).read_bytes()[:80]),
            r"panoptic/000002\.png, compared with .*data/panoptic/000002\.png: image file is truncated",
        ),
        (lambda out: resize(out / SEGMENTS), r"000002\.png.* 20 x 40.* 40 x 20"),
        (lambda out: Image.open(out / SEGMENTS).convert("L").save(out / SEGMENTS), r"000002\.png.* L, "),
        (lambda out: (out / INSTANCES).unlink(), r"coco_instances_results\.json"),
        (lambda out: edit(out / INSTANCES, lambda c: c[1].update(image_id=9)), "entry 1: .*no image with id 9"),
        (lambda out: edit(out / INSTANCES, lambda c: c[1].update(category_id=20)), "entry 1: .*category with id 20"),
        (lambda out: edit(out / INSTANCES, lambda c: c[1].pop("score")), "entry 1: .*score.*COCO's results format"),
        (
            lambda out: edit(out / INSTANCES, lambda c: c[1]["segmentation"].update(size=[40, 20])),
            r"entry 1: .*\[40, 20\].* 1 \[20, 40\]",
        ),
        (
            lambda out: edit(out / INSTANCES, lambda c: c[1]["segmentation"].update(counts=[800])),
            "entry 1: .*compressed RLE",
        ),
        (lambda out: (out / LABELS).unlink(), r"semantic: .* 1 missing, such as '000002\.png'"),
        (lambda out: (out / "semantic/9.png").touch(), r"semantic: .* 1 not of the data set, such as '9\.png'"),
        (lambda out: paint(out / LABELS, 255), r"semantic/000002\.png.* 255"),
        (lambda out: resize(out / LABELS), r"000002.*size \(20, 40\) is not the prediction's, \(40, 20\)"),
    ],
)
def test_damaged_predictions(
    saved: dict[str, Any], tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(tmp_path / "out" / "pets")
    with pytest.raises(UserError, match=message):
        evaluate_again(tmp_path / "out")


def test_a_test_set_without_annotations(pets: list[dict[str, Any]], tmp_path: Path) -> None:
    """As COCO's test-dev: predictions are saved for the server."""
    edit(tmp_path / "data" / "instances.json", lambda content: content.pop("annotations"))
    assert evaluate("pets", zip(pets, outputs(), strict=True), tmp_path / "out", ["instance"]) == {}
    assert len(json.loads((tmp_path / "out" / INSTANCES).read_text())) == 3


# Two processes


def evaluate_share(folder: Path, pets: list[dict[str, Any]]) -> None:
    """Process 0 has the first two images, process 1 the third. Then what they have saved is evaluated."""
    rank = comm.get_rank()
    register("pets", folder / "data")
    share = slice(0, 2) if rank == 0 else slice(2, 3)
    results = evaluate("pets", zip(pets[share], outputs()[share], strict=True), folder / "joint" / "pets")
    (folder / f"results_{rank}.json").write_text(json.dumps(results))
    comm.synchronize()  # the first process writes the json files
    saved = evaluate_saved(get_cfg(), "pets", folder / "joint")
    (folder / f"saved_{rank}.json").write_text(json.dumps(saved))


def test_two_processes(pets: list[dict[str, Any]], tmp_path: Path) -> None:
    alone = evaluate("pets", zip(pets, outputs(), strict=True), tmp_path / "alone")
    for image in pets:  # what loading finds
        (tmp_path / "data" / image["file_name"]).touch()
    launch(evaluate_share, (tmp_path, pets), device="cpu", num_processes=2)
    joint = json.loads((tmp_path / "results_0.json").read_text())
    assert json.loads((tmp_path / "results_1.json").read_text()) == {}
    assert joint.keys() == alone.keys()
    for task, metrics in alone.items():
        assert joint[task] == pytest.approx(metrics, nan_ok=True), task
    assert len(json.loads((tmp_path / "saved_0.json").read_text())) == 3
    for task, metrics in json.loads((tmp_path / "saved_0.json").read_text()).items():
        assert metrics == pytest.approx(alone[task], nan_ok=True), task
    for file in ("panoptic.json", "coco_instances_results.json"):
        assert json.loads((tmp_path / "joint" / "pets" / file).read_text()) == json.loads(
            (tmp_path / "alone" / file).read_text()
        )
