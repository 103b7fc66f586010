"""Evaluation on videos."""

import json

import pytest
import torch
from detectron2.structures import Instances

from dformer.d2.data import register_declarations
from dformer.d2.data.datasets import get_records
from dformer.d2.data.video import VideoSampler
from dformer.d2.engine.predictor import Predictor
from dformer.d2.evaluation.build import task_evaluators
from dformer.d2.evaluation.evaluate import evaluate, evaluate_saved, headline
from dformer.data.segmentations import decode_rle
from dformer.data.video import read_segments
from dformer.utils.errors import UserError
from tests.d2.tiny import random_model, tiny_cfg
from tests.data import clips

pytest.importorskip("trackeval")
pytestmark = pytest.mark.usefixtures("empty_catalogs")
FORMS = ("davis", "youtube_vis", "kitti_step", "vipseg")


def evaluator_of(root, form, task="panoptic"):
    (root / form).mkdir()
    register_declarations({form: clips.write(root / form, form)}, root / form)
    (evaluator,) = task_evaluators(tiny_cfg(opts=["TEST.TASKS", (task,)]), form, root / "out").values()
    return evaluator, get_records(form)


def as_output(record, task, change=lambda segment: segment):
    """A frame's truth as a model's output, its segments changed."""
    segments = [change(dict(s)) for s in read_segments(record) if not s["iscrowd"]]
    masks = [torch.from_numpy(decode_rle(s["segmentation"])).bool() for s in segments]
    if task == "panoptic":
        found = torch.zeros(record["height"], record["width"], dtype=torch.int32)
        for number, mask in enumerate(masks, start=1):
            found[mask] = number
        infos = [{**s, "id": number, "score": 0.9} for number, s in enumerate(segments, start=1)]
        return {"panoptic_seg": (found, infos)}
    things = [(s, mask) for s, mask in zip(segments, masks, strict=True) if s["isthing"]]
    instances = Instances((record["height"], record["width"]))
    instances.pred_masks = torch.stack([mask for _, mask in things])
    instances.pred_classes = torch.tensor([s["category_id"] for s, _ in things])
    instances.scores = torch.full((len(things),), 0.9)
    instances.track_ids = torch.tensor([s["track_id"] for s, _ in things])
    return {"instances": instances}


def scores(evaluator, records, task, change=lambda record: lambda segment: segment):
    evaluator.folder.mkdir(exist_ok=True)
    evaluator.reset()
    for record in records:
        evaluator.process([record], [as_output(record, task, change(record))])
    return evaluator.evaluate()["video"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("task", ["panoptic", "instance"])
def test_the_truth_has_100_in_all_metrics(tmp_path, form, task):
    evaluator, records = evaluator_of(tmp_path, form, task)
    evaluator.task = task = task if form in ("kitti_step", "vipseg") else "instance"
    found = scores(evaluator, records, task)
    assert {"J&F", "HOTA", "IDF1", "AP"} <= found.keys()
    assert ({"STQ", "VPQ"} <= found.keys()) == (task == "panoptic")
    found.pop("AR1")  # a class has two objects in DAVIS
    assert found == pytest.approx(dict.fromkeys(found, 100))


def test_saved_predictions_have_the_same_metrics_and_lost_ones_are_named(tmp_path):
    evaluator, records = evaluator_of(tmp_path, "kitti_step")

    def shifted(record):
        late = record["frame"] >= 10
        return lambda s: {**s, "track_id": s["track_id"] + late} if "track_id" in s else s

    found = scores(evaluator, records, "panoptic", shifted)
    assert 40 < found["IDF1"] < 60 and found["DetA"] == pytest.approx(100) and found["IoU"] == pytest.approx(100)
    assert found["AP50"] < 100 and found["VPQ1"] == pytest.approx(100) and found["VPQ2"] < 100
    evaluator.reset()
    evaluator.process_saved(records)
    assert evaluator.evaluate()["video"] == pytest.approx(found, nan_ok=True)
    content = json.loads(evaluator.json_file.read_text())
    evaluator.json_file.write_text(json.dumps({"frames": content["frames"][1:]}))
    with pytest.raises(UserError, match="1 missing"):
        evaluator.process_saved(records)


def test_objects_in_crowds_and_void_do_not_count(tmp_path):
    evaluator, records = evaluator_of(tmp_path, "kitti_step")
    for record in records:
        for segment in record["segments_info"]:
            if segment.get("track_id", 0) >= 600:  # the squares become crowds
                segment |= {"iscrowd": 1}
                del segment["track_id"]
    evaluator.records = records
    assert scores(evaluator, records, "panoptic")["IDF1"] == pytest.approx(100)
    with_crowds = [as_output(record, "panoptic") for record in records]
    for output, record in zip(with_crowds, records, strict=True):
        crowd = next(s for s in read_segments(record) if s["iscrowd"])
        output["panoptic_seg"][0][torch.from_numpy(decode_rle(crowd["segmentation"])).bool()] = 9
        output["panoptic_seg"][1].append({"id": 9, "category_id": 1, "isthing": True, "track_id": 5, "score": 0.5})
    evaluator.reset()
    evaluator.process(records, with_crowds)
    assert evaluator.evaluate()["video"]["IDF1"] == pytest.approx(100)


def test_a_model_is_evaluated_with_its_tracker(tmp_path):
    register_declarations({"clips": clips.write(tmp_path, "kitti_step")}, tmp_path)
    opts = [
        "DATASETS.TRAIN",
        ("clips",),
        "DATASETS.TEST",
        ("clips",),
        "TEST.TRACKER",
        "queries",
        "OUTPUT_DIR",
        str(tmp_path / "out"),
    ]
    cfg = random_model(tmp_path / "model.pth", opts=opts)
    results = evaluate(cfg, Predictor(cfg).model)["clips"]
    shown = headline(results)
    assert {"STQ", "VPQ", "J&F", "HOTA", "IDF1", "track_AP"} == shown.keys()
    again = evaluate_saved(cfg, "clips", tmp_path / "out" / "inference")
    assert again["video"] == pytest.approx(results["video"], nan_ok=True)


def test_whole_videos_are_shared_out():
    assert list(VideoSampler(["b", "b", "a", "b", "c"])) == [0, 1, 2, 3, 4]
