"""A trained model, from images to results."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from numpy.typing import NDArray

from dformer.d2.checkpoint.checkpointer import fetch_checkpoint, load_weights
from dformer.d2.config.device import inference_autocast
from dformer.d2.data import model_classes
from dformer.d2.data.augmentations import test_augmentations
from dformer.d2.evaluation.test_time_augmentation import augment
from dformer.d2.modeling.meta_arch import Request, Segmenter, Step
from dformer.utils.errors import UserError
from dformer.utils.memory import keep_pages

IdMap = NDArray[np.uint8]  # (H, W), ids of segments; 0 where nothing is known
Image = NDArray[np.uint8]  # (H, W, 3) RGB
Size = tuple[int, int]  # height, width


class Predictor:
    """Run the model of a cfg with the weights of MODEL.WEIGHTS, on MODEL.DEVICE.

    Images are resized as for evaluation (INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST; TEST.AUG). It runs in float32, with
    TEST.AMP.ENABLED in mixed precision. The same image and request give the same result at each call.

    Attributes:
        model: the model, in evaluation mode; `model.request` is what a cfg asks for.
        class_names, things: names of the model's classes, and the ids of those that are things (see `model_classes`).
        task: the one that it was trained for.
    """

    def __init__(self, cfg: CfgNode) -> None:
        if not cfg.MODEL.WEIGHTS:
            raise UserError("the model needs trained weights: give a checkpoint with MODEL.WEIGHTS <file>")
        keep_pages()
        self.class_names, self.things = model_classes(cfg)
        self.task: str = cfg.INPUT.TASK
        self.model: Segmenter = build_model(cfg).eval()
        self.model.check(self.model.request)
        checkpoint = fetch_checkpoint(cfg.MODEL.WEIGHTS, averaged=cfg.MODEL.EMA_DECAY > 0)
        load_weights(self.model, checkpoint, cfg.MODEL.WEIGHTS)
        self._is_bgr = cfg.INPUT.FORMAT == "BGR"
        self._augmentations = T.AugmentationList(test_augmentations(cfg))
        self._augmented = augment(cfg, self.model)
        self._autocast = inference_autocast(cfg)

    def __call__(self, image: Image, request: Request | None = None) -> dict[str, Any]:
        """Return the results of an image (H, W, 3) RGB, see `Segmenter.forward`."""
        return self.predict([image], request=request)[0]

    @torch.no_grad()
    def predict(
        self,
        images: Sequence[Image],
        sizes: Sequence[Size] | None = None,
        request: Request | None = None,
        known: Sequence[IdMap | None] | None = None,
    ) -> list[dict[str, Any]]:
        """Return the results of a batch of images.

        Args:
            images: each (H, W, 3) RGB.
            sizes: height and width of each result; by default those of the image.
            request: by default what the cfg asks for; a `UserError` if the model cannot do it.
            known: for models that complete masks (`model.completes`), what is known of each image's, of its size.
        """
        if self._augmented is not self.model and known is None:
            with self._autocast:
                return self._augmented(self._batch(images, sizes))
        for step in self.steps(images, sizes, request, known):  # noqa: B007
            pass
        return step.results

    def steps(
        self,
        images: Sequence[Image],
        sizes: Sequence[Size] | None = None,
        request: Request | None = None,
        known: Sequence[IdMap | None] | None = None,
    ) -> Iterator[Step]:
        """Yield what is known after each step, without test-time augmentation; arguments and errors as of `predict`."""
        steps = self.model.steps(self._batch(images, sizes, known), request)
        while True:
            with self._autocast:  # not while the caller has a step
                step = next(steps, None)
            if step is None:
                return
            yield step

    def _batch(
        self, images: Sequence[Image], sizes: Sequence[Size] | None, known: Sequence[IdMap | None] | None = None
    ) -> list[dict[str, Any]]:
        if known is not None and not self.model.completes:
            raise UserError(f"{type(self.model).__name__} cannot complete masks; LDMSeg can")
        sizes = sizes or [(image.shape[0], image.shape[1]) for image in images]
        batch = []
        for image, (height, width), ids in zip(images, sizes, known or [None] * len(images), strict=True):
            augmented = T.AugInput(image[:, :, ::-1] if self._is_bgr else image, sem_seg=ids)
            self._augmentations(augmented)
            resized = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
            item = {"image": resized, "height": height, "width": width}
            if ids is not None:
                if ids.shape != image.shape[:2]:
                    raise UserError(f"known: the map is {ids.shape}, but the image {image.shape[:2]}; give one size")
                item["known_map"] = torch.from_numpy(augmented.sem_seg.astype(np.int64))
            batch.append(item)
        return batch
