"""From boxes and mask heads to instances."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from dformer.ops.dynamic_masks import dynamic_masks, num_dynamic_parameters
from dformer.postprocess.boxes import Detections, instances, masks_in_boxes, suppress, top_detections
from dformer.postprocess.view import View
from tests.models.test_diffusioninst import check_result, part, views_of


@pytest.mark.golden
def test_published_results(golden_dir):
    golden = load_file(golden_dir / "diffusioninst_postprocess.safetensors")
    for i, view in enumerate(views_of(golden)):
        parts = [golden[f"pred_{name}"][i] for name in ("logits", "boxes", "kernels")]
        found = suppress([top_detections(*parts, count=len(parts[0]))], threshold=0.5, count=1000)
        check_result(found, golden["mask_features"][i], view, part(golden, f"image.{i}"))


def test_one_by_one_gives_what_many_at_once_give(monkeypatch):
    torch.manual_seed(0)
    view = View((64, 96), (60, 90), (50, 120))
    corner = torch.rand(9, 2) * torch.tensor([100.0, 40.0])
    boxes = torch.cat([corner, corner + torch.rand(9, 2) * torch.tensor([20.0, 10.0]) + 1], dim=1)
    boxes[3, 2:] = boxes[3, :2]
    kernels, features = torch.randn(9, num_dynamic_parameters(4)), torch.randn(4, 16, 24)
    many = masks_in_boxes(kernels, features, boxes, view)
    monkeypatch.setattr("dformer.postprocess.boxes.MAX_ELEMENTS", {"cpu": 1})
    one = masks_in_boxes(kernels, features, boxes, view)
    assert torch.equal(many, one) and many.any() and not many[3].any()
    for mask, (left, top, right, bottom) in zip(many, boxes.int().tolist(), strict=True):
        mask[top:bottom, left:right] = False
        assert not mask.any()


def test_overlapping_detections_of_a_class_are_suppressed_over_all_steps():
    box = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    kernels = torch.zeros(1, 3)
    steps = [
        Detections(box, torch.tensor([0.5]), torch.tensor([1]), kernels),
        Detections(box + 1, torch.tensor([0.9]), torch.tensor([1]), kernels + 1),
        Detections(box, torch.tensor([0.2]), torch.tensor([0]), kernels + 2),
    ]
    found = suppress(steps, threshold=0.5, count=10)
    assert found.scores.tolist() == pytest.approx([0.9, 0.2]) and found.kernels[:, 0].tolist() == [1, 2]
    assert len(suppress(steps, threshold=0.5, count=1).scores) == 1


def test_without_detections_there_is_an_empty_result():
    view = View((32, 32), (32, 32), (32, 32))
    nothing = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 33))
    result = instances(nothing, torch.zeros(4, 8, 8), view)
    assert result.masks.shape == (0, 32, 32) and result.boxes.shape == (0, 4)


def test_a_mask_head_is_three_layers():
    torch.manual_seed(0)
    kernel, features = torch.randn(1, num_dynamic_parameters(2)), torch.randn(2, 3, 5)
    w1, w2, w3, b1, b2, b3 = kernel[0].split([4, 4, 2, 2, 2, 1])
    x = features.flatten(1)
    x = (w1.view(2, 2) @ x + b1[:, None]).relu()
    x = (w2.view(2, 2) @ x + b2[:, None]).relu()
    assert_close(dynamic_masks(kernel, features)[0], (w3 @ x + b3).view(3, 5))
