"""Results in fixed shapes are those of the other functions, image by image."""

import pytest
import torch
from torch import Tensor

from dformer.postprocess import dense, queries
from dformer.postprocess.boxes import instances, suppress, top_detections
from dformer.postprocess.id_maps import SegmentThresholds, panoptic_segments, segment_map
from dformer.postprocess.label_maps import find_segments, majority_vote
from dformer.postprocess.view import View

SIZE = (24, 32)
VIEW = View(SIZE, SIZE, SIZE)
THINGS = torch.tensor([True, False, True, False])


def check_panoptic(found: dict[str, Tensor], image: int, panoptic_map: Tensor, segments: list[dict]) -> None:
    """Each segment has a slot, of its class and score; nothing else has."""
    ours, classes, scores = (found[name][image] for name in ("panoptic_map", "classes", "scores"))
    assert (classes >= 0).sum() == len(segments) and ((panoptic_map > 0) == (ours > 0)).all()
    for segment in segments:
        (slot,) = ours[panoptic_map == segment["id"]].unique().tolist()
        assert ((ours == slot) == (panoptic_map == segment["id"])).all()
        assert classes[slot - 1] == segment["category_id"]
        assert scores[slot - 1].item() == pytest.approx(segment["score"], abs=1e-5)


@pytest.fixture
def predictions() -> tuple[Tensor, Tensor]:
    """Class logits (B, N, K + 1) and mask logits (B, N, H, W); nothing is found in the last image."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(4, 10, 5, generator=generator)
    logits[3, :, 4] = 20
    coarse = 4 * torch.randn(4, 10, 3, 4, generator=generator)
    return logits, torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")


def test_queries(predictions):
    panoptic = dense.query_panoptic(*predictions, THINGS, 0.3, 0.2)
    semantic = dense.query_semantic(*predictions)["sem_seg"]
    objects = dense.query_instances(*predictions, THINGS, 12)
    num_segments = 0
    for b, (logits, masks) in enumerate(zip(*predictions, strict=True)):
        parts = [
            queries.PanopticMap(logits, SIZE, THINGS, 0.3, 0.2),
            queries.SemanticScores(logits, SIZE),
            queries.Instances(logits, SIZE, THINGS, 12),
        ]
        (panoptic_map, segments), scores, expected = queries.collect(parts, [(slice(0, SIZE[0]), masks)])
        check_panoptic(panoptic, b, panoptic_map, segments)
        num_segments += len(segments)
        torch.testing.assert_close(semantic[b], scores)
        count = len(expected.scores)
        for name, x in expected._asdict().items():
            torch.testing.assert_close(objects[name][b, :count], x)
        assert (objects["classes"][b, count:] == -1).all() and (objects["scores"][b, count:] == 0).all()
    assert num_segments > 6


def test_boxes():
    generator = torch.Generator().manual_seed(0)
    batch, num_boxes = 3, 12
    low = 20 * torch.rand(batch, num_boxes, 2, generator=generator) - 2
    boxes = torch.cat([low, low + 1 + 12 * torch.rand(batch, num_boxes, 2, generator=generator)], dim=2)
    boxes[:, 6:] = boxes[:, :6] + 1  # duplicates
    boxes[0, 0] = torch.tensor([-9.0, 0, -3, 8])  # outside
    logits = torch.randn(batch, num_boxes, 3, generator=generator)
    kernels = torch.randn(batch, num_boxes, 2 * 2**2 + 3 * 2 + 1, generator=generator)
    mask_features = torch.randn(batch, 2, SIZE[0] // 4, SIZE[1] // 4, generator=generator)
    detections = top_detections(logits, boxes, kernels, 10)
    found = dense.box_instances({**detections._asdict(), "mask_features": mask_features}, SIZE, 0.5, 8)
    for b in range(batch):
        kept = suppress([type(detections)(*(x[b] for x in detections))], 0.5, 8)
        expected = instances(kept, mask_features[b], VIEW)
        filled = found["classes"][b] >= 0
        assert filled.sum() == len(expected.scores) > 0
        for name, x in expected._asdict().items():
            torch.testing.assert_close(found[name][b][filled], x)


@pytest.mark.parametrize("min_area", [0, 40])
def test_label_maps(min_area):
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(5, (2, 3, 6, 8), generator=generator)
    classes, ids = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3).unbind(0)
    ids = torch.where(torch.rand(ids.shape, generator=generator) < 0.1, 0, ids)
    confidence = torch.rand(ids.shape, generator=generator)
    found = dense.label_panoptic(classes, ids, confidence, THINGS, 6, min_area, 0.49)
    for b in range(3):
        voted = majority_vote(classes[b], ids[b], min_area)
        segments = find_segments(*voted, confidence[b], THINGS, 0.49)
        check_panoptic(found, b, segments.map, segments.info(THINGS))


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_id_maps(margin):
    generator = torch.Generator().manual_seed(0)
    coarse = 4 * torch.randn(3, 8, 3, 4, generator=generator)
    logits = torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear")
    class_scores = torch.randn(3, 8, 4, generator=generator).softmax(2)
    thresholds = SegmentThresholds(0.5, 0.6, 20, 0.0, margin)
    found = dense.id_panoptic(logits, class_scores, THINGS, thresholds)
    for b in range(3):
        segments = segment_map(logits[b], VIEW, thresholds)
        check_panoptic(found, b, *panoptic_segments(segments, class_scores[b][segments.ids], THINGS))
