"""Batches for a GPU are in pinned memory."""

import pytest
import torch
from detectron2.structures import Boxes, Instances

from dformer.d2.data.loaders import PinnableBatch, build_train_loader
from tests.d2.tiny import small_shapes, tiny_cfg


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_batches_for_a_gpu_are_pinned(empty_catalogs, tmp_path, device):
    small_shapes(tmp_path, "pinned", train=2, val=1)
    cfg = tiny_cfg()
    cfg.MODEL.DEVICE, cfg.DATASETS.TRAIN = device, ("pinned_train",)
    assert build_train_loader(cfg).pin_memory == (device == "cuda")


def test_every_tensor_of_a_batch_is_pinned(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: x + 1)  # needs a GPU
    instances = Instances((4, 5), gt_classes=torch.zeros(2), gt_boxes=Boxes(torch.zeros(2, 4)))
    batch = PinnableBatch([{"image": torch.zeros(3, 4, 5), "image_id": 7, "instances": instances}])
    (item,) = batch.pin_memory()
    fields = item["instances"].get_fields()
    assert item["image"].all() and fields["gt_classes"].all() and fields["gt_boxes"].tensor.all()
    assert item["image_id"] == 7 and item["instances"].image_size == (4, 5)
