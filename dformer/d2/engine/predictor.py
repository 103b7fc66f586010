"""A trained model, from images to results."""

from collections.abc import Sequence
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
from dformer.utils.errors import UserError
from dformer.utils.memory import keep_pages


class Predictor:
    """The model of a cfg with the weights of MODEL.WEIGHTS, on MODEL.DEVICE.

    Images are resized as for evaluation (INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST; TEST.AUG). On a GPU it runs in mixed
    precision where SOLVER.AMP.ENABLED says so. The same image gives the same result at each call, as the noise is drawn
    from DIFFUSION.SEED.

    Attributes:
        model: the model, in evaluation mode.
        class_names: of the model's classes (see `model_classes`).
        num_masks: N, the masks that the model predicts.
        autocast: context of the precision that the model runs in.

    Raises:
        UserError: MODEL.WEIGHTS is empty, is not a checkpoint or does not fit the model, the data set is unknown, or
            DIFFUSION.SAMPLING_STEPS is not in 1..DIFFUSION.TIMESTEPS.
    """

    def __init__(self, cfg: CfgNode) -> None:
        steps, timesteps = cfg.DIFFUSION.SAMPLING_STEPS, cfg.DIFFUSION.TIMESTEPS
        if not 1 <= steps <= timesteps:
            raise UserError(f"sampling steps (DIFFUSION.SAMPLING_STEPS) must be in 1..{timesteps}, got {steps}")
        if not cfg.MODEL.WEIGHTS:
            raise UserError("the model needs trained weights: give a checkpoint with MODEL.WEIGHTS <file>")
        keep_pages()
        self.class_names, _ = model_classes(cfg)
        self.num_masks: int = cfg.MODEL.MASK_DECODER.NUM_QUERIES
        self.model = build_model(cfg).eval()
        checkpoint = fetch_checkpoint(cfg.MODEL.WEIGHTS, averaged=cfg.MODEL.EMA_DECAY > 0)
        load_weights(self.model, checkpoint, cfg.MODEL.WEIGHTS)
        self._is_bgr = cfg.INPUT.FORMAT == "BGR"
        self._augmentations = T.AugmentationList(test_augmentations(cfg))
        self._augmented = augment(cfg, self.model)
        self.autocast = inference_autocast(cfg)

    @torch.no_grad()
    def __call__(
        self, images: Sequence[NDArray[np.uint8]], sizes: Sequence[tuple[int, int]] | None = None
    ) -> list[dict[str, Any]]:
        """Results of a batch of images.

        Args:
            images: each (H, W, 3) RGB.
            sizes: height and width of each result; by default those of the image.

        Returns:
            A dict an image, with the results of cfg.TEST.TASKS: "panoptic_seg", "instances", "sem_seg" (see
            `Segmenter.forward`).
        """
        sizes = sizes or [image.shape[:2] for image in images]
        inputs = [
            {"image": self.prepare(image), "height": height, "width": width}
            for image, (height, width) in zip(images, sizes, strict=True)
        ]
        with self.autocast:
            return self._augmented(inputs)

    def prepare(self, image: NDArray[np.uint8]) -> torch.Tensor:
        """An image (H, W, 3) RGB as the model takes it: resized, (3, h, w), in the order of channels of the config."""
        augmented = T.AugInput(image[:, :, ::-1] if self._is_bgr else image)
        self._augmentations(augmented)
        return torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
