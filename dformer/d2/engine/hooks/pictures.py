"""Pictures in TensorBoard: how some images are annotated, what noise makes of their masks, and what is predicted."""

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from torch import Tensor

from dformer.d2.data.augmentations import test_augmentations
from dformer.d2.data.datasets import available_tasks, class_names, get_metadata, loading, num_classes
from dformer.d2.data.mappers import TrainMapper
from dformer.d2.data.pictures import draw_targets
from dformer.d2.modeling.meta_arch.segmenter import Segmenter
from dformer.data.annotations import annotation_reader
from dformer.models.dformer import DFormerHead, MaskDiffusion
from dformer.signals.masks import corrupt
from dformer.utils import rng
from dformer.visualize import INSTANCE_THRESHOLD, UInt8, draw_grid, draw_segments, result_segments

IMAGES = 2
MASKS = 6  # of an image that are shown with noise
TIMES = 5  # at which they are shown


class Pictures(HookBase):
    """Puts pictures of the first images of the data set into the storage, every VIS_PERIOD steps; the same each time.

    The data set is the first of DATASETS.TEST that is annotated for INPUT.TASK, or of DATASETS.TRAIN. Nothing that is
    random in training changes.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.period = cfg.VIS_PERIOD
        self.task = cfg.INPUT.TASK
        self.is_bgr = cfg.INPUT.FORMAT == "BGR"
        self.name = next(n for n in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN) if self.task in available_tasks(n))
        self.items = _items(cfg, self.name)

    def after_step(self) -> None:
        """Draw where it is time."""
        if (self.trainer.iter + 1) % self.period == 0:
            for item in self.items:
                for kind, picture in self.draw(self.trainer.model, item).items():
                    chw = np.ascontiguousarray(picture.transpose(2, 0, 1))
                    self.trainer.storage.put_image(f"{item['image_id']}/{kind}", chw)

    def draw(self, model: Segmenter, item: dict[str, Any]) -> dict[str, UInt8]:
        """Pictures (h, w, 3) of an image by what they show."""
        image = item["image"].permute(1, 2, 0).numpy()
        image = np.ascontiguousarray(image[:, :, ::-1] if self.is_bgr else image)
        classes, masks = item["instances"].gt_classes.tolist(), item["instances"].gt_masks
        pictures = {"annotated": draw_targets(image, classes, masks.numpy(), self.name, self.task)}
        if isinstance(model.head, DFormerHead) and len(masks):
            t, grid = noisy_masks(masks, model.head.diffusion)
            pictures[f"masks at t = {', '.join(map(str, t))}"] = grid
        result = predict(model, item["image"], self.task)
        segments = result_segments(result, self.task)
        pictures["predicted"] = draw_segments(image, segments, class_names(self.name, self.task))
        return pictures


def _items(cfg: CfgNode, name: str) -> list[dict[str, Any]]:
    with loading(name):
        records = DatasetCatalog.get(name)[:IMAGES]
    ignore_label = get_metadata(name).get("ignore_label", 255)
    reader = annotation_reader(cfg.INPUT.TASK, num_classes(name, cfg.INPUT.TASK), ignore_label)
    mapper = TrainMapper(test_augmentations(cfg), reader, cfg.INPUT.FORMAT)
    state = np.random.get_state()  # of which Detectron2's augmentations draw, though there is one size
    items = [mapper(record) for record in records]
    np.random.set_state(state)
    return items


def noisy_masks(masks: Tensor, diffusion: MaskDiffusion) -> tuple[list[int], UInt8]:
    """Some of the masks (G, H, W), a column each, as the decoder sees them, a row for each time. Returns these, too."""
    # Closer where t is small: with a small signal scale, masks drown early.
    times = (torch.linspace(0, 1, TIMES) ** 3 * (len(diffusion.alpha_bar) - 1)).long().tolist()
    rows = [
        corrupt(
            masks,
            num_masks=min(len(masks), MASKS),
            alpha_bar_t=diffusion.alpha_bar[t].cpu(),
            scale=diffusion.scale,
            encoding=diffusion.encoding,
            stride=diffusion.stride,
            generator=rng.generator("cpu", "picture"),  # the same masks in each row
        )
        for t in times
    ]
    return times, draw_grid(torch.stack(rows).numpy())


@torch.no_grad()
def predict(model: Segmenter, image: Tensor, task: str) -> dict[str, Any]:
    """The result for an image (3, h, w), at its size, of a model in training, which stays as it is."""
    tasks, model.tasks = model.tasks, (task,)
    model.eval()
    try:
        result = model([{"image": image}])[0]
    finally:
        model.train()
        model.tasks = tasks
    if task == "instance":
        result["instances"] = result["instances"][result["instances"].scores >= INSTANCE_THRESHOLD]
    return result
