"""From images to results with the weights of a file."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from dformer.d2.engine.predictor import Predictor
from dformer.postprocess.view import View
from dformer.utils.errors import UserError
from tests.d2.tiny import tiny_cfg


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


def scores(cfg, image, **changes) -> torch.Tensor:
    cfg = cfg.clone()
    cfg.merge_from_list([word for pair in changes.items() for word in (pair[0].replace("__", "."), pair[1])])
    return Predictor(cfg)(image)["sem_seg"]


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
    assert predictor(image)["sem_seg"].shape == (7, 48, 80)
    assert not result["sem_seg"].requires_grad


def test_the_seed_and_the_steps_count(cfg, image):
    reference = scores(cfg, image)
    assert torch.equal(reference, scores(cfg, image))
    assert not torch.equal(reference, scores(cfg, image, DIFFUSION__SEED=1))
    assert not torch.equal(reference, scores(cfg, image, DIFFUSION__SAMPLING_STEPS=2))


def test_the_model_gets_its_order_of_channels(cfg, image):
    assert torch.equal(scores(cfg, image), scores(cfg, image[:, :, ::-1], INPUT__FORMAT="BGR"))


def test_images_are_resized_as_for_evaluation(cfg, image):
    (step,) = Predictor(cfg).steps([image])
    assert step.views == [View(canvas=(64, 128), image=(64, 107), size=(48, 80))]


def test_a_caller_of_steps_is_not_in_the_precision_of_the_model(cfg, image):
    predictor = Predictor(cfg)
    for _ in predictor.steps([image]):
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
