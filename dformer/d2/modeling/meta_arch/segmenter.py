"""The base of all meta-architectures: images in, losses or steps out."""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch import Tensor, nn

from dformer.d2.modeling.meta_arch.step import CONFIG_KEYS, Output, Request, Step
from dformer.d2.modeling.meta_arch.tiles import segment_in_tiles
from dformer.postprocess import TASKS
from dformer.postprocess.view import Size, View
from dformer.utils import rng
from dformer.utils.errors import UserError

Batch = list[dict[str, Any]]


class Segmenter(nn.Module, ABC):
    """Prepare images, group them by padded size and seed generators, for a system that computes losses and samples.

    A system is a subclass with `compute_losses` and `sample`. What it draws at random depends in training on seed,
    `iteration` and image id alone, at inference on the seed of the request.

    Attributes:
        tasks: what the system can be asked for.
        request: what is asked for by default.
        options: the numbers of a `Request` that the system knows -> lowest and highest value.
        max_time: the time of pure noise; None without diffusion.
        compilable: names of the parts that `compile_parts` compiles: backbone and decoders.
        dense_tasks: those of `tasks` that `dense_results` has.
        completes: whether it completes masks that are given in part, `known_map` of an image.
        refines: whether it makes coarse masks better, `refine`, and finds masks anew, `hint_masks` of an image.
        iteration: training forwards so far; a resumed run sets it.
    """

    tasks: Sequence[str] = TASKS
    compilable: Sequence[str] = ("backbone",)
    dense_tasks: Sequence[str] = ()
    options: Mapping[str, tuple[int, int]] = {}
    max_time: float | None = None
    completes: bool = False
    refines: bool = False
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        pixel_mean: list[float],
        pixel_std: list[float],
        size_divisibility: int,
        training_seed: int,
        request: Request,
        max_objects: int = 100,
    ) -> None:
        super().__init__()
        self.size_divisibility = size_divisibility
        self.training_seed = training_seed
        self.request = request
        self.max_objects = max_objects  # of an image in tiles
        self.iteration = 0
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def compile_parts(self) -> None:
        """Compile backbone and decoders in place by torch.compile; what each is compiled for, it is at its first call.

        What decides between parts (matching, sampling, results) stays as it is. Names of parameters do not change.
        """
        for name in self.compilable:
            self.get_submodule(name).compile()

    def initialize(self) -> None:
        """Load parts that were trained before, which the config names; called once, before a training begins."""

    @abstractmethod
    def compute_losses(self, images: Tensor, batch: Batch, generators: list[torch.Generator]) -> dict[str, Tensor]:
        """Return weighted losses by name, to be summed.

        Args:
            images: normalised and padded (B, 3, H, W).
            batch: as of `forward`.
            generators: one an image, for all that is random.
        """

    @abstractmethod
    def sample(
        self, images: Tensor, batch: Batch, generators: list[torch.Generator], request: Request
    ) -> Iterator[tuple[float | None, list[Output]]]:
        """Yield time and outputs after each step; arguments as of `compute_losses`."""

    def refine(self, item: dict[str, Any], time: int, steps: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return class logits (M, K + 1) and masks (M, height, width) bool for coarse ones of an image.

        Args:
            item: as of `forward`, with `coarse_masks` (M, h, w) bool.
            time: from which they are denoised, 0..T-1: the higher, the less they are trusted.
            steps: sampling steps.
            seed: of the noise.
        """
        raise UserError(
            f"{type(self).__name__} cannot refine masks; a DFormer trained with DIFFUSION.ASSIGNMENT denoising can"
        )

    def noise_shape(self, canvas: Sequence[int], request: Request) -> tuple[int, ...]:
        """Return the shape of the noise that is drawn for an image of a padded size; empty without diffusion."""
        return ()

    def predictions(self, images: Tensor, draw_noise: Callable[[], Tensor], request: Request) -> dict[str, Tensor]:
        """Return what the last step predicts for all images, by name: with `dense_results`, what is exported.

        Sizes and batch may be symbols (`torch.export`), and no value is looked at.

        Args:
            images: normalised and padded (B, 3, H, W).
            draw_noise: standard normal noise (B, *noise_shape), new at each call.
            request: as of `steps`.
        """
        raise UserError(f"{type(self).__name__} cannot be exported")

    def dense_results(
        self, predictions: dict[str, Tensor], canvas: tuple[int, int], task: str, request: Request
    ) -> dict[str, Tensor]:
        """Return the results of a task, of `dense_tasks`, in shapes that no value changes (`postprocess.dense`)."""
        raise UserError(f"{type(self).__name__} cannot be exported")

    def noisy_targets(self, batch: Batch, t: float) -> list[Tensor] | None:
        """Return what training makes of each image's ground truth at time `t`: maps (M, h, w) in [0, 1] over the image.

        The noise is that of the default request's seed, the same at each time. None without diffusion.
        """
        return None

    def forward(self, batch: Batch, canvas: Size | None = None) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Return losses in training, and else the results of the last step.

        Args:
            batch: an item an image: `image` (3, H, W) in 0..255; `height` and `width` of the result, if not H and W;
                for training `image_id` and the targets that the mapper delivers (INPUT.TARGET).
            canvas: height and width that training images are padded to at least, as in a batch that these are part of.

        Returns:
            Training: weighted losses by name, to be summed. Inference: an item an image, of the results asked for:
            `sem_seg` (K, height, width) class scores; `panoptic_seg`, a map (height, width) int32 and its segments
            (dicts of `id`, `isthing`, `category_id`, `score`, `area`); `instances` with `pred_masks`, `pred_boxes`,
            `scores`, `pred_classes`.
        """
        if self.training:
            return self.losses(batch, canvas)
        for step in self.steps(batch):  # noqa: B007 (one at a time: each holds the predictions of a step)
            pass
        return step.results

    def losses(self, batch: Batch, canvas: Size | None = None) -> dict[str, Tensor]:
        images = self.preprocess(batch).tensor
        if canvas is not None:
            height, width = (-(-side // self.size_divisibility) * self.size_divisibility for side in canvas)
            images = F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]))
        generators = [
            rng.generator(self.device, self.training_seed, self.iteration, item.get("image_id", index))
            for index, item in enumerate(batch)
        ]
        self.iteration += 1
        return self.compute_losses(images, batch, generators)

    @torch.no_grad()
    def steps(self, batch: Batch, request: Request | None = None) -> Iterator[Step]:
        """Yield what is known after each step; the last one has the result.

        Only images of one padded size share a forward, so that no result depends on the other images. Where an image
        is cut into tiles, there is one step, with its result.
        """
        request = request or self.request
        self.check(request)
        if any(max(item["image"].shape[1:]) > request.tile > 0 for item in batch):
            yield segment_in_tiles(self, batch, request)
            return
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, item in enumerate(batch):
            groups[tuple(-(-side // self.size_divisibility) for side in item["image"].shape[1:])].append(index)
        order = sorted((index, place) for place, index in enumerate(sum(groups.values(), [])))
        sampled = [self._steps_of_one_size([batch[index] for index in group], request) for group in groups.values()]
        for parts in zip(*sampled, strict=True):
            outputs = [output for part in parts for output in part.outputs]
            views = [view for part in parts for view in part.views]
            yield Step(parts[0].t, [outputs[place] for _, place in order], [views[place] for _, place in order])

    def _steps_of_one_size(self, batch: Batch, request: Request) -> Iterator[Step]:
        images = self.preprocess(batch)
        canvas = images.tensor.shape[2], images.tensor.shape[3]
        views = [
            View(canvas, size, (item.get("height", size[0]), item.get("width", size[1])))
            for item, size in zip(batch, images.image_sizes, strict=True)
        ]
        generators = [rng.generator(self.device, request.seed) for _ in batch]
        for t, outputs in self.sample(images.tensor, batch, generators, request):
            yield Step(t, outputs, views)

    def check(self, request: Request) -> None:
        """Check that the system can do what is asked for, and raise a `UserError` if not."""
        for task in request.tasks:
            if task not in self.tasks:
                raise UserError(f'task "{task}": {type(self).__name__} has {", ".join(self.tasks)}; choose among them')
        thresholds = {"object_threshold": (0, 1), "overlap_threshold": (0, 1)}
        for name, (low, high) in {**self.options, **thresholds}.items():
            value = getattr(request, name)
            if value is not None and not low <= value <= high:
                raise UserError(f"{name} ({CONFIG_KEYS[name]}) must be in {low}..{high}, got {value}")

    def preprocess(self, batch: Batch) -> ImageList:
        """Normalise images, and pad them with zeros at the right and the bottom to one size."""
        images = [item["image"].to(self.device, non_blocking=True) for item in batch]
        images = [(image - self.pixel_mean) / self.pixel_std for image in images]
        return ImageList.from_tensors(images, self.size_divisibility)
