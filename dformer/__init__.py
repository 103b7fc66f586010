"""Image segmentation by diffusion: DFormer and its siblings on Detectron2.

    import dformer
    model = dformer.load("dformer://shapes")
    result = model("photo.jpg")  # or an array (H, W, 3) uint8, RGB, or a list

Nothing heavy is imported before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dformer.utils.version import __version__

if TYPE_CHECKING:
    from dformer.d2.engine.predictor import Predictor

__all__ = ["__version__", "load"]


def load(weights: str, config_file: str | None = None, opts: Sequence[str] = (), *, compile: bool = False) -> Predictor:
    """Load a trained model and return it as a function of images, on the GPU where there is one.

    Args:
        weights: a checkpoint of ours or of a published model: a file, a URL, a shipped model ("dformer://shapes"), or
            the name of a published one ("mask2former/coco/panoptic/r50"), which is downloaded once.
        config_file: config of the model; by default the one of the checkpoint.
        opts: config overrides, "KEY", "VALUE", ...
        compile: compile backbone and decoders by torch.compile, which takes a minute or more at the first image.

    Raises:
        UserError: the checkpoint or the config cannot be used, or Detectron2 is not installed.
    """
    from dformer.utils.errors import NO_DETECTRON2, UserError

    try:
        from dformer.d2.checkpoint.zoo import inference_config
        from dformer.d2.engine.predictor import Predictor
    except ModuleNotFoundError as error:
        if error.name != "detectron2":
            raise
        raise UserError(NO_DETECTRON2) from error

    return Predictor(inference_config(weights, config_file, list(opts)), compile)
