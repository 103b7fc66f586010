"""Boundaries against brute force; boundary AP and IoU by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as rle
from scipy.ndimage import binary_erosion

from dformer.metrics.boundary import BoundaryEvaluation, boundary, boundary_width, rle_boundary
from dformer.metrics.instance import coco_evaluation, mask_average_precision
from dformer.metrics.semantic import boundary_counts, boundary_metrics

SIZES = st.tuples(st.integers(1, 12), st.integers(1, 12))


@given(arrays(np.int64, SIZES, elements=st.integers(0, 2)), st.integers(1, 3))
def test_boundary_of_labels(labels, distance):
    height, width = labels.shape
    expected = np.zeros(labels.shape, bool)
    for y, x in np.ndindex(*labels.shape):
        near = [(y + dy, x + dx) for dy in range(-distance, distance + 1) for dx in range(-distance, distance + 1)]
        expected[y, x] = any(not (0 <= v < height and 0 <= u < width) or labels[v, u] != labels[y, x] for v, u in near)
    assert (boundary(labels, distance) == expected).all()


@given(arrays(np.bool_, SIZES), st.integers(1, 60), st.integers(0, 90))
def test_boundary_of_a_mask(mask, scale, left):
    """The mask without its erosion by d pixels, as in the paper, wherever the mask is in the image."""
    mask = np.pad(np.kron(mask, np.ones((scale, scale), bool)), ((0, 7), (left, 0)))
    distance = boundary_width(*mask.shape)
    expected = mask & ~binary_erosion(mask, np.ones((3, 3)), iterations=distance)
    found = rle.decode(rle_boundary(rle.encode(np.asfortranarray(mask, np.uint8))))
    assert (found == expected).all()


@pytest.mark.parametrize(("size", "distance"), [((480, 640), 16), ((30, 40), 1), ((3, 4), 1), ((75, 100), 2)])
def test_distance(size, distance):
    """2 % of the diagonal; 2.5 pixels are rounded to the even 2, as in the published evaluation."""
    assert boundary_width(*size) == distance


def square(row: int, column: int) -> np.ndarray:
    """60 x 60 pixels in an image of 120 x 160, whose boundaries are 4 pixels wide."""
    mask = np.zeros((120, 160), np.uint8)
    mask[row : row + 60, column : column + 60] = 1
    return mask


def average_precision(mask: np.ndarray, iscrowd: int = 0) -> dict[str, float]:
    """Of a detection `mask`, where a square is annotated; if that is a crowd, another object is found exactly."""

    def coded(mask: np.ndarray, **more: object) -> dict:
        return {"image_id": 1, "category_id": 1, "segmentation": rle.encode(np.asfortranarray(mask)), **more}

    corner = np.zeros((120, 160), np.uint8)
    corner[100:, 100:] = 1
    truth = {
        "images": [{"id": 1, "height": 120, "width": 160}],
        "annotations": [coded(square(20, 20), area=3600, iscrowd=iscrowd), coded(corner, area=1200)],
        "categories": [{"id": 1, "name": "box"}],
    }
    detections = [coded(corner, score=0.8), coded(mask, score=0.9)]
    return mask_average_precision(coco_evaluation(truth, detections, [1], BoundaryEvaluation))


def test_boundary_ap():
    """Moved by a row: mask IoU 59/61 passes all thresholds, boundary IoU six of ten."""
    # Of 60^2 - 52^2 = 896 pixels, the moved frame misses the topmost row of 60 and 52 above what is in the frame.
    boundaries = [rle_boundary(rle.encode(np.asfortranarray(square(row, 20)))) for row in (20, 21)]
    iou = rle.iou(boundaries[:1], boundaries[1:], [0]).item()
    assert iou == pytest.approx((896 - 60 - 52) / (896 + 60 + 52))  # 0.778
    assert average_precision(square(20, 20))["AP"] == pytest.approx(100)
    moved = average_precision(square(21, 20))
    assert moved["AR100"] == pytest.approx(100 * (1 + 0.6) / 2)
    assert moved["AP50"] == moved["AP75"] == pytest.approx(100)


def test_boundary_ap_and_crowds():
    """A detection within a crowd is ignored, though it has none of the crowd's boundary."""
    inside = np.zeros((120, 160), np.uint8)
    inside[40:60, 40:60] = 1
    assert average_precision(inside, iscrowd=1)["AP"] == pytest.approx(100)
    assert average_precision(inside, iscrowd=0)["AP"] < 60


def test_boundary_iou_of_classes():
    """A square of class 1 before class 0, predicted one row too low; all to the right of it is void."""
    annotated = square(20, 20).astype(np.int64)
    annotated[:, 100:] = 255
    predicted = square(21, 20).astype(np.int64)
    predicted[:, 100:] = 2  # where void is, all is allowed
    counts = boundary_counts(annotated, predicted, 3, ignore_label=255)
    results = boundary_metrics(counts, ["wall", "box", "lamp"])
    assert results["BoundaryIoU-box"] == pytest.approx(100 * (896 - 60 - 52) / (896 + 60 + 52))
    # the wall: all but its inner part, and of the square's surroundings 68 x 68 - 60 x 60
    frame = 120 * 100 - 112 * 92
    around, moved = 68 * 68 - 60 * 60, 68 + 60
    assert results["BoundaryIoU-wall"] == pytest.approx(100 * (frame + around - moved) / (frame + around + moved))
    assert np.isnan(results["BoundaryIoU-lamp"])
    assert results["mBoundaryIoU"] == pytest.approx((results["BoundaryIoU-wall"] + results["BoundaryIoU-box"]) / 2)
