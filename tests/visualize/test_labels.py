"""Places of labels: in the picture, apart from each other, on their segment or beside a small one."""

import numpy as np

from dformer.visualize.arrays import tight_box
from dformer.visualize.labels import Patch, draw_labels

HEIGHT, WIDTH = 480, 640


class Picture:
    """Record the boxes x0, y0, x1, y1 of the labels that are pasted."""

    height, width = HEIGHT, WIDTH

    def __init__(self) -> None:
        self.boxes: list[tuple[int, int, int, int]] = []

    def paste(self, label, corner, mask) -> None:
        self.boxes.append((*corner, corner[0] + label.width, corner[1] + label.height))


def label_boxes(masks: np.ndarray) -> list[tuple[int, int, int, int]]:
    picture = Picture()
    boxes = [tight_box(mask) for mask in masks]
    patches = [Patch(box, m[box], m.sum(), "star 90%", (9, 9, 9), True, 0) for m, box in zip(masks, boxes, strict=True)]
    draw_labels(picture, patches, font_size=13)
    return picture.boxes


def test_labels_are_inside_the_picture_and_apart():
    random = np.random.default_rng(0)
    masks = np.zeros((40, HEIGHT, WIDTH), bool)
    for mask in masks:
        top, left = random.integers(0, (HEIGHT - 5, WIDTH - 5))
        mask[top : top + random.integers(5, 120), left : left + random.integers(5, 120)] = True
    boxes = label_boxes(masks)
    assert len(boxes) > 20
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        assert 0 <= x0 < x1 <= WIDTH and 0 <= y0 < y1 <= HEIGHT
        assert all(x1 <= a0 or a1 <= x0 or y1 <= b0 or b1 <= y0 for a0, b0, a1, b1 in boxes[:k]), "labels overlap"


def test_a_label_is_on_its_segment_or_beside_a_small_one():
    masks = np.zeros((2, HEIGHT, WIDTH), bool)
    masks[0, 200:400, 50:250] = True
    masks[1, 100:112, 500:512] = True
    (x0, y0, x1, y1), small = label_boxes(masks)
    assert masks[0, y0:y1, x0:x1].all()
    assert not masks[1, small[1] : small[3], small[0] : small[2]].all()
    assert abs(small[0] - 506) < 100 and abs(small[1] - 106) < 40, "it is near"
