"""Boxes as a signal."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from torchvision.ops import box_convert

from dformer.diffusion.prediction import eps_from_x0
from dformer.diffusion.schedule import add_noise, alpha_bar_table
from dformer.signals.boxes import boxes_to_signal, initial_boxes, pad_boxes, signal_to_boxes
from dformer.signals.masks import to_signal, to_unit
from tests.models.test_diffusioninst import extent_of, part


@pytest.mark.golden
def test_published_boxes(golden_dir):
    golden = load_file(golden_dir / "diffusioninst_boxes.safetensors")
    scale, table = golden["scale"].item(), alpha_bar_table("cosine", len(golden["alphas_cumprod_sqrt"]))
    assert_close(table.sqrt().float(), golden["alphas_cumprod_sqrt"], rtol=0, atol=1e-6)
    images = sorted({name.split(".")[1] for name in golden if name.startswith("image.")})
    assert len(images) > 2
    for i in images:
        case = part(golden, f"image.{i}")
        extent = extent_of(case["size"])
        shares = box_convert(case["gt_boxes"] / extent, "xyxy", "cxcywh")
        shares = shares[case["kept"]] if "kept" in case else pad_boxes(shares, case["padding"])
        x_start = to_signal(shares, scale)
        x_t = add_noise(x_start, case["noise"], table[case["t"][0]])
        for ours, name in [(x_start, "x_start"), (x_t, "x_t")]:
            assert_close(ours, case[name], rtol=0, atol=1e-5)
        assert_close(box_convert(to_unit(x_t, scale), "cxcywh", "xyxy"), case["noisy_boxes"], rtol=0, atol=1e-6)
        assert_close(signal_to_boxes(x_t, extent, scale), case["head_input"], rtol=0, atol=5e-5)

    case = part(golden, "step")
    extent = torch.stack([extent_of(size) for size in case["sizes"]])[:, None]
    assert_close(signal_to_boxes(case["x_t"], extent, scale), case["head_input"], rtol=0, atol=5e-5)
    x0 = boxes_to_signal(case["predicted_boxes"], extent, scale)
    assert_close(x0, case["x0"], rtol=0, atol=1e-5)
    assert_close(eps_from_x0(case["x_t"], x0, table[case["t"]]), case["noise"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 3, 5, 9])
def test_there_are_always_as_many_boxes_as_asked_for(count):
    shares = torch.rand(count, 4)
    first, again, other = (initial_boxes(shares, 5, torch.Generator().manual_seed(k)) for k in (0, 0, 1))
    assert first.shape == (5, 4) and torch.equal(first, again)
    assert count == 5 or not torch.equal(first, other)
    if 0 < count <= 5:
        assert torch.equal(first[:count], shares)
    elif count > 5:
        rows = [shares.tolist().index(row) for row in first.tolist()]
        assert len(set(rows)) == 5


def test_signal_and_boxes_are_inverse_inside_the_image():
    boxes, extent = torch.tensor([[2.0, 5.0, 30.0, 9.0], [0.0, 0.0, 100.0, 50.0]]), torch.tensor([100.0, 50.0] * 2)
    assert_close(signal_to_boxes(boxes_to_signal(boxes, extent, 2.0), extent, 2.0), boxes)
