"""Evaluation of saved predictions: the same metrics as of the run, faults that are named, several processes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from PIL import Image

from dformer.d2.config import get_cfg
from dformer.d2.engine.launch import launch
from dformer.d2.evaluation import build_evaluators, evaluate_saved
from dformer.utils.errors import UserError
from tests.d2.evaluation.oracle import DOG_SEGMENT, MOVED_CAT, SIZE, evaluate, instances_output, poor_outputs

pytestmark = pytest.mark.usefixtures("empty_catalogs")

SCENES = [np.array([[0, 1], [255, 2]]), np.array([[2, 1]])]


def register_scenes(folder, name="scenes", image_files=("a/1.jpg", "b/1.jpg")):
    """Register a semantic set with the labels `SCENES`; its images do not exist."""
    records = []
    for k, (image_file, labels) in enumerate(zip(image_files, SCENES, strict=True)):
        Image.fromarray(labels.astype(np.uint8)).save(folder / f"labels_{k}.png")
        file_name, label_file = folder / "images" / image_file, folder / f"labels_{k}.png"
        records.append({"file_name": str(file_name), "sem_seg_file_name": str(label_file)})
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(stuff_classes=["x", "y", "z"], evaluator_type="sem_seg", ignore_label=255)


@pytest.mark.parametrize(
    ("name", "ids", "values"),
    [
        ("ade20k_sem_seg_some", None, [2, 3]),  # as published: 0 is void
        ("streets", {0: 30, 1: 20, 2: 1000}, [20, 1000]),
        ("scenes", None, [1, 2]),
    ],
)
def test_semantic_files_and_label_values(tmp_path, name, ids, values):
    """Images of one name in several folders; correct predictions, of class x where void is annotated."""
    register_scenes(tmp_path, name)
    if ids:
        MetadataCatalog.get(name).stuff_dataset_id_to_contiguous_id = {i: k for k, i in ids.items()}
    scores = [torch.eye(3)[np.where(labels == 255, 0, labels)].permute(2, 0, 1) for labels in SCENES]
    pairs = zip(DatasetCatalog.get(name), ({"sem_seg": s} for s in scores), strict=True)
    assert evaluate(name, pairs, tmp_path / "out" / name, ["semantic"])["sem_seg"]["pACC"] == 100
    folder = tmp_path / "out" / name / "semantic"
    assert {str(f.relative_to(folder)): Image.open(f).size for f in folder.rglob("*.png")} == {
        "a/1.png": (2, 2),
        "b/1.png": (2, 1),
    }
    assert sorted(np.unique(np.array(Image.open(folder / "b/1.png")))) == values
    assert evaluate_saved(get_cfg(), name, tmp_path / "out")["sem_seg"]["pACC"] == 100


def test_images_that_differ_in_their_ending_only(tmp_path):
    register_scenes(tmp_path, image_files=("1.jpg", "1.png"))
    with pytest.raises(UserError, match=r"1\.jpg .*1\.png .*1\.png"):
        build_evaluators(get_cfg(), "scenes", tmp_path)


@pytest.fixture
def saved(pets, tmp_path):
    """Metrics of predictions in "out/pets", with two detections in an image."""
    predictions = poor_outputs()
    predictions[0]["instances"] = instances_output([MOVED_CAT, DOG_SEGMENT], SIZE, scores=[1 / 3, 0.1])
    return evaluate("pets", zip(pets, predictions, strict=True), tmp_path / "out" / "pets", more=True)


def evaluate_again(root):
    cfg = get_cfg()
    cfg.TEST.BOUNDARY = cfg.TEST.CLASS_AGNOSTIC = True
    return evaluate_saved(cfg, "pets", root)


def test_saved_predictions_get_the_same_metrics(saved, tmp_path):
    def times():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.*")}

    before = times()
    assert len(before) == 3 + 3 + 2
    assert json.dumps(evaluate_again(tmp_path / "out")) == json.dumps(saved)  # to the last digit, nan included
    assert times() == before  # none was written


def edit(change):
    """Return a damage to a JSON file: `change` of its list of entries."""

    def damage(file):
        content = json.loads(file.read_text())
        change(content["annotations"] if isinstance(content, dict) else content)
        file.write_text(json.dumps(content))

    return damage


def paint(file):
    picture = Image.open(file)
    picture.paste(255, (0, 0, 3, 3))
    picture.save(file)


PANOPTIC, INSTANCES = "panoptic.json", "coco_instances_results.json"
SEGMENTS, LABELS = "panoptic/000002.png", "semantic/000002.png"


@pytest.mark.parametrize(
    ("file", "damage", "named"),
    [
        (".", lambda folder: folder.rename(folder.with_name("dogs")), "pets.*--predictions"),
        (PANOPTIC, Path.unlink, r"panoptic\.json.*TEST\.TASKS"),
        (PANOPTIC, lambda file: file.write_text("{"), r"panoptic\.json"),
        (PANOPTIC, lambda file: file.write_text("[]"), r"panoptic\.json"),
        (PANOPTIC, edit(lambda entries: entries[1].pop("file_name")), r"panoptic\.json.*'file_name'"),
        (PANOPTIC, edit(lambda entries: entries.pop()), r"panoptic\.json.* 1 .* 3"),
        (PANOPTIC, edit(lambda entries: entries.append({**entries[0], "image_id": 9})), r"panoptic\.json.* 1 .* 9"),
        (PANOPTIC, edit(lambda entries: entries.append(entries[0])), r"panoptic\.json.*image_id"),
        (PANOPTIC, edit(lambda entries: entries[1]["segments_info"].pop()), r"000002\.png.* 2 "),
        (PANOPTIC, edit(lambda e: e[1]["segments_info"][0].update(category_id=5)), r"000002\.png.*category_id 5"),
        (SEGMENTS, Path.unlink, r"panoptic/000002\.png"),
        (SEGMENTS, lambda file: file.write_bytes(file.read_bytes()[:80]), r"panoptic/000002.*data/panoptic/000002"),
        (SEGMENTS, lambda file: Image.open(file).resize((20, 40)).save(file), r"000002\.png.*\(20,40\).*\(40,20\)"),
        (SEGMENTS, lambda file: Image.open(file).convert("L").save(file), r"panoptic/000002\.png.*RGB"),
        (INSTANCES, edit(lambda entries: entries[1].update(image_id=9)), "entry 1: image_id.* 9"),
        (INSTANCES, edit(lambda entries: entries[1].update(category_id=20)), "entry 1: category_id.* 20"),
        (INSTANCES, edit(lambda entries: entries[1].pop("score")), "entry 1: .*'score'"),
        (INSTANCES, edit(lambda e: e[1]["segmentation"].update(size=[40, 20])), r"entry 1: .*\[40, 20\].*\[20, 40\]"),
        (INSTANCES, edit(lambda e: e[1]["segmentation"].update(counts=[800])), "entry 1: segmentation.*counts"),
        (LABELS, Path.unlink, r"semantic: .* 1 .*'000002\.png'"),
        ("semantic/9.png", Path.touch, r"semantic: .* 1 .*'9\.png'"),
        (LABELS, paint, r"semantic/000002\.png.* 255"),
        (LABELS, lambda file: Image.open(file).resize((20, 40), 0).save(file), r"000002.*\(20, 40\).*\(40, 20\)"),
    ],
)
def test_damaged_predictions(saved, tmp_path, file, damage, named):
    damage(tmp_path / "out" / "pets" / file)
    with pytest.raises(UserError, match=named):
        evaluate_again(tmp_path / "out")


# Two processes


def evaluate_share(folder, pets):
    """Evaluate the first two images in process 0, the third in process 1; then evaluate what both have saved."""
    rank = comm.get_rank()
    share = slice(0, 2) if rank == 0 else slice(2, 3)
    results = evaluate("pets", zip(pets[share], poor_outputs()[share], strict=True), folder / "joint" / "pets")
    comm.synchronize()  # the first process writes the json files
    saved = evaluate_saved(get_cfg(), "pets", folder / "joint")
    (folder / f"results_{rank}.json").write_text(json.dumps([results, saved]))


def test_two_processes(pets, tmp_path):
    def read(name):
        return json.loads((tmp_path / name).read_text())

    alone = evaluate("pets", zip(pets, poor_outputs(), strict=True), tmp_path / "alone")
    launch(evaluate_share, (tmp_path, pets), device="cpu", num_processes=2)
    assert read("results_1.json") == [{}, {}]
    for results in read("results_0.json"):
        assert results.keys() == alone.keys()
        for task, metrics in alone.items():
            assert results[task] == pytest.approx(metrics, nan_ok=True), task
    for file in ("panoptic.json", "coco_instances_results.json"):
        assert read(f"joint/pets/{file}") == read(f"alone/{file}")
