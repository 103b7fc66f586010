"""Test-time augmentation: the views that the model gets, and the mean of its scores."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image
from torch import nn

from dformer.d2.data.mappers import TestMapper
from dformer.d2.evaluation.test_time_augmentation import SemanticTTA, augment
from dformer.utils.errors import UserError
from tests.d2.tiny import tiny_cfg


def augmented_cfg(meta_architecture: str = "DFormer", sizes: tuple[int, ...] = (32, 64), flip: bool = True):
    cfg = tiny_cfg(meta_architecture)
    cfg.MODEL.NUM_CLASSES = 7
    cfg.TEST.TASKS = ("semantic",)
    cfg.TEST.AUG.ENABLED, cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = True, sizes, flip
    return cfg


class Echo(nn.Module):
    """Scores of three classes: the image, its columns from left to right, and the height of the view."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []

    def forward(self, batch):
        (item,) = batch
        height, width = item["image"].shape[1:]
        self.sizes.append((height, width))
        size = (item["height"], item["width"])
        grey = nn.functional.interpolate(item["image"][None].float(), size).mean(1)[0]
        columns = torch.arange(size[1]).float().expand(size)
        return [{"sem_seg": torch.stack([grey, columns, torch.full(size, float(height))])}]


def test_scores_are_averaged_where_they_belong():
    """A bright left half stays where it is; a model that counts columns is averaged out by the mirror image."""
    image = torch.zeros(3, 16, 24, dtype=torch.uint8)
    image[:, :, :12] = 200
    echo = Echo()
    (result,) = SemanticTTA(augmented_cfg(), echo)([{"image": image, "height": 32, "width": 48}])
    assert echo.sizes == [(32, 48), (32, 48), (64, 96), (64, 96)]
    bright, columns, height = result["sem_seg"]
    assert bright.shape == (32, 48)
    assert (bright[:, :20] > 190).all() and (bright[:, -20:] < 10).all()
    assert (columns == 23.5).all()
    assert (height == 48).all()
    (unflipped,) = SemanticTTA(augmented_cfg(flip=False), echo)([{"image": image}])
    assert echo.sizes[4:] == [(32, 48), (64, 96)] and (unflipped["sem_seg"][1] == torch.arange(24)).all()


@pytest.mark.parametrize("meta_architecture", ["DFormer", "Mask2Former"])
def test_one_view_is_the_model_itself(meta_architecture):
    cfg = augmented_cfg(meta_architecture, sizes=(64,), flip=False)
    model = build_model(cfg).eval()
    image = torch.randint(256, (3, 64, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs = [{"image": image, "height": 30, "width": 40}]
    once = augment(cfg, model)(inputs)[0]["sem_seg"]
    assert torch.equal(once, model(inputs)[0]["sem_seg"])
    cfg.TEST.AUG.FLIP = True
    twice = augment(cfg, model)(inputs)[0]["sem_seg"]
    mirrored = model([{**inputs[0], "image": image.flip(-1)}])[0]["sem_seg"].flip(-1)
    assert torch.allclose(twice, (once + mirrored) / 2) and not torch.allclose(twice, once)


def test_only_where_enabled_and_of_the_original_image(tmp_path):
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "1.png")
    cfg, echo, shapes = augmented_cfg(), Echo(), []
    for cfg.TEST.AUG.ENABLED in (True, False):
        assert (augment(cfg, echo) is echo) == (not cfg.TEST.AUG.ENABLED)
        shapes.append(TestMapper.from_config(cfg)({"file_name": str(tmp_path / "1.png")})["image"].shape)
    assert shapes == [(3, 20, 30), (3, 64, 96)]


@pytest.mark.parametrize(("key", "value"), [("TEST.TASKS", ("panoptic", "semantic")), ("TEST.AUG.MIN_SIZES", ())])
def test_errors_name_the_key(key, value):
    cfg = augmented_cfg()
    cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=key):
        augment(cfg, Echo())
