"""Pictures in TensorBoard: how some images are annotated, what noise makes of them, and what is predicted."""

from dataclasses import replace
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.engine import HookBase

from dformer.d2.data.augmentations import test_augmentations
from dformer.d2.data.datasets import available_tasks, class_names, get_metadata, get_records, num_classes
from dformer.d2.data.mappers import TrainMapper
from dformer.d2.data.pictures import draw_targets
from dformer.d2.modeling.meta_arch import Segmenter
from dformer.data.annotations import annotation_reader
from dformer.utils import rng
from dformer.visualize import INSTANCE_THRESHOLD, UInt8, draw_grid, draw_segments, result_segments

IMAGES = 2
MASKS = 6  # of an image that are shown with noise
TIMES = 5  # at which they are shown


class Pictures(HookBase):
    """Put pictures of the first images of the data set into the storage, every VIS_PERIOD steps; the same each time.

    The data set is the first of DATASETS.TEST that is annotated for INPUT.TASK, or of DATASETS.TRAIN.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.period = cfg.VIS_PERIOD
        self.task = cfg.INPUT.TASK
        self.is_bgr = cfg.INPUT.FORMAT == "BGR"
        self.name = next(n for n in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN) if self.task in available_tasks(n))
        records = get_records(self.name)[:IMAGES]
        ignore_label = get_metadata(self.name).get("ignore_label", 255)
        reader = annotation_reader(self.task, num_classes(self.name, self.task), ignore_label)
        mapper = TrainMapper(test_augmentations(cfg), reader, cfg.INPUT.FORMAT)
        with rng.seeded("pictures"):  # Detectron2's augmentations draw, though there is one size
            self.batch = [mapper(record) for record in records]

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0:
            for item in self.batch:
                for kind, picture in self.draw(self.trainer.model, item).items():
                    chw = np.ascontiguousarray(picture.transpose(2, 0, 1))
                    self.trainer.storage.put_image(f"{item['image_id']}/{kind}", chw)

    def draw(self, model: Segmenter, item: dict[str, Any]) -> dict[str, UInt8]:
        """Return pictures (h, w, 3) of an image by what they show. The model, in training, stays as it is."""
        image = item["image"].permute(1, 2, 0).numpy()
        image = np.ascontiguousarray(image[:, :, ::-1] if self.is_bgr else image)
        classes, masks = item["instances"].gt_classes.tolist(), item["instances"].gt_masks
        pictures = {"annotated": draw_targets(image, classes, masks.numpy(), self.name, self.task)}
        if model.max_time is not None and len(masks):
            # Closer where t is small: with a small signal scale, masks soon drown in noise.
            times = [(k / (TIMES - 1)) ** 3 * model.max_time for k in range(TIMES)]
            times = [int(t) for t in times] if isinstance(model.max_time, int) else times
            first = {**item, "instances": item["instances"][:MASKS]}
            noisy = [maps.cpu().numpy() for t in times for maps in model.noisy_targets([first], t) or []]
            pictures[f"at t = {', '.join(f'{t:g}' for t in times)}"] = draw_grid(np.stack(noisy))
        model.eval()
        for step in model.steps([item], replace(model.request, tasks=(self.task,))):  # noqa: B007
            pass
        model.train()
        segments = result_segments(step.results[0], self.task, INSTANCE_THRESHOLD)
        pictures["predicted"] = draw_segments(image, segments, class_names(self.name, self.task))
        return pictures
