"""A trained model, from images to results."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray
from torch import nn

from dformer.checkpoint import read_weights
from dformer.d2.data import get_metadata
from dformer.d2.data.augmentations import test_augmentations
from dformer.d2.precision import inference_autocast
from dformer.d2.test_time_augmentation import augment
from dformer.errors import UserError


class Predictor:
    """The model of a cfg with the weights of MODEL.WEIGHTS, on MODEL.DEVICE.

    Images are resized as for evaluation (INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST; TEST.AUG). On a GPU it runs in mixed
    precision where SOLVER.AMP.ENABLED says so. The same image gives the same result at each call, as the noise is drawn
    from DIFFUSION.SEED.

    Attributes:
        model: the model, in evaluation mode.
        class_names: of the model's classes, as the data set has them that it was trained on (DATASETS.TRAIN).

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
        self.class_names = class_names(cfg.DATASETS.TRAIN[0], cfg.INPUT.TASK)
        self.model = build_model(cfg).eval()
        load_weights(self.model, cfg.MODEL.WEIGHTS)
        self._is_bgr = cfg.INPUT.FORMAT == "BGR"
        self._augmentations = T.AugmentationList(test_augmentations(cfg))
        self._augmented = augment(cfg, self.model)
        self._autocast = inference_autocast(cfg)

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
            {"image": self._prepare(image), "height": height, "width": width}
            for image, (height, width) in zip(images, sizes, strict=True)
        ]
        with self._autocast:
            return self._augmented(inputs)

    def _prepare(self, image: NDArray[np.uint8]) -> torch.Tensor:
        augmented = T.AugInput(image[:, :, ::-1] if self._is_bgr else image)
        self._augmentations(augmented)
        return torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))


def class_names(dataset: str, task: str) -> list[str]:
    """Names of the classes of a model for `task` ("panoptic", "instance" or "semantic") on a data set, by class id.

    Raises:
        UserError: the data set is unknown, or names no classes for this task.
    """
    metadata = get_metadata(dataset)
    key = "thing_classes" if task == "instance" else "stuff_classes"  # in panoptic sets, these name the things too
    names = metadata.get(key)
    if names is None:
        raise UserError(f'data set "{dataset}" has no names of classes for {task} segmentation ({key} in its metadata)')
    return list(names)


def load_weights(model: nn.Module, path: str) -> None:
    """Load all parameters and buffers of `model`. Other than in training, none may be missing.

    Args:
        path: a local file (see `dformer.checkpoint.read_checkpoint`), or what Detectron2's path manager fetches.

    Raises:
        UserError: the file cannot be had, is not a checkpoint or does not fit the model.
    """
    try:
        local_path = PathManager.get_local_path(path)
    except OSError as error:
        raise UserError(f"weights {path} cannot be fetched: {error}") from error
    weights = read_weights(local_path)
    expected = model.state_dict()
    problems = {
        "missing": sorted(expected.keys() - weights.keys()),
        "not in the model": sorted(weights.keys() - expected.keys()),
        "of another shape": sorted(
            name for name in expected.keys() & weights.keys() if expected[name].shape != weights[name].shape
        ),
    }
    if any(problems.values()):
        listed = "; ".join(
            f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            for what, names in problems.items()
            if names
        )
        raise UserError(
            f"{path} does not fit the model of this config. Of {len(expected)} parameters: {listed}. "
            "Use the config that it was trained with, overrides included"
        )
    model.load_state_dict(weights)
