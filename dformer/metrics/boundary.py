"""Boundary IoU and boundary AP (Cheng et al., Boundary IoU, CVPR 2021).

The boundary of a mask is its pixels within a distance d of its outline, d being 2 % of the image's diagonal. The border
of the image is outline, too. As in the published evaluation, distance is the larger one of rows and columns.
"""

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as rle
from pycocotools.cocoeval import COCOeval

DILATION_RATIO = 0.02  # d / diagonal of the image


def boundary_width(height: int, width: int) -> int:
    """Return the distance d, in pixels, for images of this size."""
    return max(1, round(DILATION_RATIO * math.hypot(height, width)))


def boundary(labels: NDArray[np.integer[Any]], distance: int) -> NDArray[np.bool_]:
    """Return the pixels (H, W) with another label, or the image's border, at most `distance` rows and columns away."""
    square = np.ones((2 * distance + 1,) * 2, np.uint8)
    inside = labels.astype(np.uint16) + 1  # 0 is outside
    outside = {"borderType": cv2.BORDER_CONSTANT, "borderValue": 0}
    return cv2.erode(inside, square, **outside) != cv2.dilate(inside, square, **outside)


def rle_boundary(mask: dict[str, Any]) -> dict[str, Any]:
    """Return the boundary of a mask; both in COCO's run-length encoding."""
    distance = boundary_width(*mask["size"])
    x, y, width, height = rle.toBbox(mask).astype(int)
    pixels = rle.decode(mask)
    box = pixels[y : y + height, x : x + width]  # its surroundings are outside of the mask, as the image's are
    if box.size:
        box &= boundary(box, distance)
    return rle.encode(pixels)


class BoundaryEvaluation(COCOeval):
    """Evaluate as COCO does, with the smaller one of mask and boundary IoU; for crowds, with the mask IoU."""

    def computeIoU(self, imgId: int | str, catId: int) -> Any:  # noqa: N802, N803 - pycocotools' names
        """Return the IoU of the detections, by falling score, and objects of a class in an image."""
        ious = super().computeIoU(imgId, catId)
        if len(ious) == 0:
            return ious
        objects = self._gts[imgId, catId]
        order = np.argsort([-d["score"] for d in self._dts[imgId, catId]], kind="stable")[: len(ious)]
        detections = [self._dts[imgId, catId][i] for i in order]
        crowd = [int(o["iscrowd"]) for o in objects]
        boundary_ious = rle.iou(
            [rle_boundary(d["segmentation"]) for d in detections],
            [rle_boundary(o["segmentation"]) for o in objects],
            crowd,
        )
        return np.where(np.array(crowd, bool), ious, np.minimum(ious, boundary_ious))
