"""Every system in tiles: a picture made of small ones has what each small one alone has."""

from dataclasses import replace

import pytest
import torch

from dformer.d2.modeling.meta_arch import Segmenter
from dformer.utils.errors import UserError
from tests.d2.systems import SYSTEMS, build, full_request


@torch.no_grad()
def last(model: Segmenter, batch: list[dict], request) -> list[dict]:
    return list(model.steps(batch, request))[-1].results


@pytest.mark.parametrize("system", [name for name in SYSTEMS if name != "MaskAutoencoder"])
def test_a_picture_of_small_ones(system: str) -> None:
    model = build(system).eval()
    request = replace(full_request(model), object_threshold=0.0, overlap_threshold=0.0, tile=64, tile_overlap=0)
    generator = torch.Generator().manual_seed(1)
    small = [{"image": torch.randint(256, (3, 64, 64), generator=generator).byte()} for _ in range(4)]
    rows = [torch.cat([small[k]["image"], small[k + 1]["image"]], 2) for k in (0, 2)]
    alone = [last(model, [item], request)[0] for item in small]
    (whole,) = last(model, [{"image": torch.cat(rows, 1)}], request)
    for k, result in enumerate(alone):
        place = slice(64 * (k // 2), 64 * (k // 2 + 1)), slice(64 * (k % 2), 64 * (k % 2 + 1))
        if "sem_seg" in result:
            assert torch.equal(whole["sem_seg"][(slice(None), *place)], result["sem_seg"])
        if "panoptic_seg" in result:
            ids, pairs = whole["panoptic_seg"][0][place], set()
            for segment in result["panoptic_seg"][1]:
                pairs.update((int(i), segment["category_id"]) for i in ids[result["panoptic_seg"][0] == segment["id"]])
            assert pairs <= {(s["id"], s["category_id"]) for s in whole["panoptic_seg"][1]}
            assert torch.equal(ids > 0, result["panoptic_seg"][0] > 0)
    if "instances" in alone[0]:
        scores = torch.cat([r["instances"].scores[r["instances"].pred_masks.flatten(1).any(1)] for r in alone])
        found = whole["instances"]
        expected = scores.sort(descending=True).values[: model.max_objects]
        torch.testing.assert_close(found.scores, expected)
        assert found.pred_masks.shape[1:] == (128, 128)


def test_results_of_another_size_and_images_that_need_no_tiles() -> None:
    model = build("DFormer").eval()
    request = replace(model.request, tile=64, tile_overlap=16)
    image = torch.randint(256, (3, 100, 130), generator=torch.Generator().manual_seed(1)).byte()
    (result,) = last(model, [{"image": image, "height": 50, "width": 65}], request)
    assert result["panoptic_seg"][0].shape == (50, 65) == result["sem_seg"].shape[1:]
    small = [{"image": image[:, :64, :50]}]
    tiled, plain = last(model, small, request), last(model, small, replace(request, tile=0))
    assert torch.equal(tiled[0]["sem_seg"], plain[0]["sem_seg"])


def test_masks_are_completed_in_whole_images_only() -> None:
    model = build("LDMSeg").eval()
    item = {"image": torch.zeros(3, 128, 128), "known_map": torch.zeros(128, 128, dtype=torch.int64)}
    with pytest.raises(UserError, match="TEST.TILE"):
        last(model, [item], replace(model.request, tile=64))
