"""From images to results with the weights of a file."""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from pycocotools import mask as rle

from dformer.d2.engine.predictor import Predictor
from dformer.postprocess.view import View
from dformer.utils.errors import UserError
from dformer.visualize import Style, enlargement
from dformer.visualize.files import VideoWriter
from tests.d2.tiny import random_model, tiny_cfg


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    cfg = tiny_cfg()
    torch.manual_seed(0)
    cfg.MODEL.WEIGHTS = str(tmp_path_factory.mktemp("weights") / "model.pth")
    torch.save({"model": build_model(cfg).state_dict()}, cfg.MODEL.WEIGHTS)
    return cfg


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Predictor:
    """A predictor that finds something everywhere."""
    return Predictor(random_model(tmp_path_factory.mktemp("weights") / "model.pth"))


def scores(cfg, image, **changes) -> torch.Tensor:
    cfg = cfg.clone()
    cfg.merge_from_list([word for pair in changes.items() for word in (pair[0].replace("__", "."), pair[1])])
    return Predictor(cfg).predict([image])[0]["sem_seg"]


def test_the_weights_are_those_of_the_file(cfg):
    saved = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"]
    model = Predictor(cfg).model
    assert not model.training
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_results_have_the_size_of_the_image_or_the_one_asked_for(cfg, image):
    predictor = Predictor(cfg)
    result, other = predictor.predict([image, image], [image.shape[:2], (10, 12)])
    assert result["sem_seg"].shape == (7, 48, 80) and result["panoptic_seg"][0].shape == (48, 80)
    assert result["instances"].pred_masks.shape[1:] == (48, 80)
    assert other["sem_seg"].shape == (7, 10, 12)
    assert not result["sem_seg"].requires_grad


def test_the_seed_and_the_steps_count(cfg, image):
    reference = scores(cfg, image)
    assert torch.equal(reference, scores(cfg, image))
    assert not torch.equal(reference, scores(cfg, image, DIFFUSION__SEED=1))
    assert not torch.equal(reference, scores(cfg, image, DIFFUSION__SAMPLING_STEPS=2))


def test_the_model_gets_its_order_of_channels(cfg, image):
    assert torch.equal(scores(cfg, image), scores(cfg, image[:, :, ::-1], INPUT__FORMAT="BGR"))


def test_images_are_resized_as_for_evaluation(cfg, image):
    (step,) = Predictor(cfg).predict_steps([image])
    assert step.views == [View(canvas=(64, 128), image=(64, 107), size=(48, 80))]


def test_a_caller_of_steps_is_not_in_the_precision_of_the_model(cfg, image):
    predictor = Predictor(cfg)
    for _ in predictor.predict_steps([image]):
        assert not torch.is_autocast_enabled("cpu") and torch.is_grad_enabled()


def test_weights_that_do_not_fit_are_refused(cfg, tmp_path):
    weights = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"]
    name, _ = weights.popitem()
    torch.save(weights, tmp_path / "other.pth")
    with pytest.raises(UserError, match=f"other.pth.*{name}"):
        scores(cfg, np.zeros((8, 8, 3), np.uint8), MODEL__WEIGHTS=str(tmp_path / "other.pth"))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("MODEL.WEIGHTS", "", "MODEL.WEIGHTS"),
        ("MODEL.WEIGHTS", "no/such.pth", "no/such.pth"),
        ("DIFFUSION.SAMPLING_STEPS", 1001, "SAMPLING_STEPS.* 1..1000"),
    ],
)
def test_values_that_cannot_be(cfg, key, value, says):
    cfg = cfg.clone()
    cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=says):
        Predictor(cfg)


def test_a_result_has_a_row_for_each_segment(model, image):
    for task, threshold in (("panoptic", 0.0), ("instance", 0.0), ("semantic", None)):
        found = model(image, task=task, threshold=threshold)
        count = len(found.segments)
        assert count > 0 and found.masks.shape == (count, 48, 80) and found.boxes.shape == (count, 4)
        assert found.scores.shape == found.classes.shape == (count,) and np.isnan(found.scores).all() == (
            task == "semantic"
        )
        assert found.names == [model.class_names[k] for k in found.classes]
        for mask, (x0, y0, x1, y1) in zip(found.masks, found.boxes, strict=True):
            assert mask.sum() == mask[y0:y1, x0:x1].sum() > 0
            assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()
        if task == "panoptic":
            ids, infos = found.predictions["panoptic_seg"]
            assert np.array_equal(found.panoptic, ids.numpy()) and len(infos) == count
        else:
            best = np.argmax(np.where(found.masks, np.nan_to_num(found.scores, nan=1)[:, None, None], -1), axis=0)
            assert np.array_equal(found.panoptic, np.where(found.masks.any(0), best + 1, 0))


def test_files_pictures_and_arrays_have_one_result(model, image, tmp_path):
    Image.fromarray(image).save(tmp_path / "a.png")
    sources = [image, tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(image), image[:, ::-1]]
    *same, other = model(sources, batch=2)
    reference = model(image)
    assert all(np.array_equal(result.panoptic, reference.panoptic) for result in same)
    assert not np.array_equal(other.panoptic, reference.panoptic) and model([]) == []
    with pytest.raises(UserError, match="float64 from 0"):
        model(image / 255)


def test_steps_can_be_watched_and_end_with_the_result(model, image):
    steps = list(model.steps(image, steps=3, seed=5))
    assert [step.t for step in steps] == [999, 665, 332]
    assert np.array_equal(steps[-1].panoptic, model(image, steps=3, seed=5).panoptic)
    assert not np.array_equal(steps[-1].panoptic, model(image, steps=3, seed=6).panoptic)


def test_a_video_is_its_frames(model, image, tmp_path):
    with VideoWriter(tmp_path / "a.avi", fps=10) as video:
        for k in range(5):
            video.write(np.roll(image, 9 * k, axis=1))
    found = list(model.video(tmp_path / "a.avi", every=2, batch=2, seed=1))
    assert [result.frame for result in found] == [0, 2, 4]
    assert all(np.array_equal(result.panoptic, model(result.image, seed=1).panoptic) for result in found)
    with pytest.raises(UserError, match="no.mp4"):
        list(model.video("no.mp4"))


def test_a_result_becomes_a_picture_and_json(model, image, tmp_path):
    found = model(image)
    scale = enlargement(48, 80)
    assert found.draw().shape == (48 * scale, 80 * scale, 3)
    found.save(tmp_path / "a.png", Style(labels=False))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), found.draw(Style(labels=False)))
    assert found._repr_png_().startswith(b"\x89PNG")
    found.save(tmp_path / "a.json")
    written = json.loads((tmp_path / "a.json").read_text())
    assert (written["height"], written["width"]) == (48, 80) and written["segments"] == found.to_coco()
    for record, mask, name in zip(written["segments"], found.masks, found.names, strict=True):
        assert np.array_equal(rle.decode(record["segmentation"]), mask) and record["category"] == name
        assert record["area"] == mask.sum()
    with pytest.raises(UserError, match="a.txt.*json"):
        found.save(tmp_path / "a.txt")


def test_large_results_are_bounded_and_written_at_the_size_of_the_image(model, image):
    found = model(image, max_pixels=960)
    assert found.masks.shape[1:] == found.image.shape[:2] == (24, 40) and found.size == (48, 80)
    assert all(record["segmentation"]["size"] == [48, 80] for record in found.to_coco())


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"task": "video"}, "video"),
        ({"threshold": 2}, "threshold"),
        ({"task": "semantic", "threshold": 0.5}, "threshold.*semantic"),
        ({"steps": 0}, "steps.*1"),
        ({"steps": 2.5}, "steps.*whole.*2.5"),
        ({"overlap_threshold": "high"}, "overlap_threshold.*high"),
        ({"step": 4}, "step:.*steps"),
    ],
)
def test_what_a_model_cannot_be_asked(model, image, asked, says):
    with pytest.raises(UserError, match=says):
        model(image, **asked)
    with pytest.raises(UserError, match=says):
        next(model.steps(image, **asked))


def test_a_model_without_diffusion_has_no_steps(tmp_path, image):
    model = Predictor(random_model(tmp_path / "model.pth", "Mask2Former"))
    with pytest.raises(UserError, match="steps.*Mask2Former"):
        model(image, steps=4)
    assert [step.t for step in model.steps(image)] == [None]


def test_augmentation_at_test_time_takes_no_arguments(cfg, image):
    cfg = cfg.clone()
    cfg.TEST.TASKS, cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES = ("semantic",), True, (64,)
    model = Predictor(cfg)
    assert model.task == "semantic" and model(image).segments
    with pytest.raises(UserError, match="TEST.AUG"):
        model(image, seed=3)
