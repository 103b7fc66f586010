"""The base of systems that predict masks and classes from queries: DFormer and Mask2Former."""

from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from dformer.d2.modeling.meta_arch.segmenter import Batch, Segmenter
from dformer.d2.modeling.meta_arch.step import Layer, Output, Request
from dformer.data.video import video_key
from dformer.layers.resize import resize
from dformer.losses.criterion import Criterion, MaskProducts, Target
from dformer.models.mask_decoder import Prediction, attended_regions
from dformer.models.tracking_branch import TrackingBranch
from dformer.postprocess import TASKS, dense, queries
from dformer.postprocess.view import View, resized_strips
from dformer.utils import rng

FEATURES = ("res2", "res3", "res4", "res5")  # strides 4, 8, 16, 32


class QuerySegmenter(Segmenter):
    """Compute losses and results of a backbone, a head that makes `Prediction`s, and a criterion."""

    compilable = ("backbone", "head.pixel_decoder", "head.mask_decoder")
    dense_tasks = TASKS

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: nn.Module,
        criterion: Criterion,
        things: list[bool],
        num_queries: int,
        top_k: int,
        resize_masks_first: bool,
        tracking: TrackingBranch | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self.backbone = backbone
        self.head = head
        self.criterion = criterion
        self.top_k = top_k
        self.resize_masks_first = resize_masks_first
        self.tracking = tracking
        self.options = {"proposals": (1, num_queries)}
        self.things = torch.tensor(things)  # no buffer: it is needed on the CPU

    @abstractmethod
    def training_predictions(
        self, features: list[Tensor], targets: list[Target], generators: list[torch.Generator]
    ) -> tuple[list[list[Prediction]], list[Target]]:
        """Return the predictions to supervise, of all layers, for each time that the batch is decoded, and targets.

        Args:
            features: of strides 4, 8, 16, 32.
            targets: one an image. Those returned are as many for each decoding.
            generators: one an image.
        """

    @abstractmethod
    def predict(
        self, features: list[Tensor], draw_noise: Callable[[], Tensor], request: Request, batch: Batch
    ) -> Iterator[tuple[float | None, Tensor | None, list[Prediction]]]:
        """Yield time, noisy signal (B, N, h, w) and the predictions of all layers after each step.

        `batch` is as of `forward`, for what is given with the images; or empty, if nothing is.
        """

    def to_masks(self, x_t: Tensor) -> Tensor:
        """Map a noisy signal to masks in [0, 1]."""
        raise TypeError(f"{type(self).__name__} has no noisy signal")

    def compute_losses(self, images: Tensor, batch: Batch, generators: list[torch.Generator]) -> dict[str, Tensor]:
        targets = [self.target(item["instances"], images.shape[-2:]) for item in batch]
        decodings, targets = self.training_predictions(self.features(images), targets, generators)
        layers = list(zip(*decodings, strict=True))
        logits = torch.stack([torch.cat([decoding.logits for decoding in layer]) for layer in layers])
        mask_embed = torch.stack([torch.cat([decoding.mask_embed for decoding in layer]) for layer in layers])
        pixels = [x for decoding in decodings for x in decoding[0].mask_features.permute(0, 2, 3, 1)]
        masks, generators = MaskProducts(mask_embed, tuple(pixels)), generators * len(decodings)
        losses = self.criterion(logits, masks, targets, generators)
        if self.tracking is not None:
            last = MaskProducts(mask_embed[-1:], masks.pixels)
            costs = self.criterion.costs(logits[-1:].float(), last, targets, generators)
            queries = torch.cat([decoding.queries for decoding in layers[-1]])
            losses |= self.tracking.losses(queries, costs, object_tracks(batch) * len(decodings))
        return losses

    def sample(
        self, images: Tensor, batch: Batch, generators: list[torch.Generator], request: Request
    ) -> Iterator[tuple[float | None, list[Output]]]:
        features = self.features(images)
        sizes = [feature.shape[-2:] for feature in features[:0:-1]]
        draw_noise = partial(rng.normal, generators, self.noise_shape(images.shape[-2:], request))
        for t, x_t, predictions in self.predict(features, draw_noise, request, batch):
            signals = [None] * len(images) if x_t is None else x_t
            yield (
                t,
                [
                    self.output(batch[b], request, [p.of_image(b) for p in predictions], signal, sizes)
                    for b, signal in enumerate(signals)
                ],
            )

    def output(self, item: dict[str, Any], *found: Any) -> Output:
        """Return what was found in an image of the batch; `found`: as of `QueryOutput`."""
        return QueryOutput(self, *found)

    def predictions(self, images: Tensor, draw_noise: Callable[[], Tensor], request: Request) -> dict[str, Tensor]:
        """Return `logits` (B, N, K + 1), the last for "no object", and `masks` (B, N, H/4, W/4), logits."""
        *_, (_, _, layers) = self.predict(self.features(images), draw_noise, request, [])
        return {"logits": layers[-1].logits.float(), "masks": layers[-1].masks.float()}

    def dense_results(
        self, predictions: dict[str, Tensor], canvas: tuple[int, int], task: str, request: Request
    ) -> dict[str, Tensor]:
        logits, things = predictions["logits"], self.things.to(predictions["logits"].device)
        masks = F.interpolate(predictions["masks"], canvas, mode="bilinear")
        match task:
            case "semantic":
                return dense.query_semantic(logits, masks)
            case "panoptic":
                thresholds = request.object_threshold, request.overlap_threshold
                return dense.query_panoptic(logits, masks, things, *thresholds)
            case _:
                return dense.query_instances(logits, masks, things, self.top_k)

    def features(self, images: Tensor) -> list[Tensor]:
        """Return maps of strides 4, 8, 16, 32; channels last, where convolutions are faster."""
        maps = self.backbone(images.contiguous(memory_format=torch.channels_last))
        return [maps[key] for key in FEATURES]

    def target(self, instances: Instances, canvas: torch.Size) -> Target:
        """Return the ground truth of an image, its masks padded to the canvas."""
        masks = instances.gt_masks.to(self.device, non_blocking=True)
        padding = (0, canvas[1] - masks.shape[2], 0, canvas[0] - masks.shape[1])
        return Target(instances.gt_classes.to(self.device, non_blocking=True), F.pad(masks, padding))


def object_tracks(batch: Batch) -> list[list[Hashable | None]]:
    """Return by what the objects of each image are known in all frames of their video; None where there is no track."""
    return [
        [(video_key(item), track) if track else None for track in item["instances"].gt_tracks.tolist()]
        if "video_id" in item
        else [None] * len(item["instances"])
        for item in batch
    ]


class QueryOutput(Output):
    """Hold the predictions of all layers for one image (B = 1), the noisy signal, and the sizes of the levels."""

    def __init__(
        self,
        model: QuerySegmenter,
        request: Request,
        predictions: list[Prediction],
        x_t: Tensor | None,
        sizes: Sequence[torch.Size],
    ) -> None:
        self.model, self.request, self.predictions, self.x_t, self.sizes = model, request, predictions, x_t, sizes

    @property
    def noisy(self) -> Tensor | None:
        return None if self.x_t is None else self.model.to_masks(self.x_t)

    @cached_property
    def last(self) -> tuple[Tensor, Tensor]:
        """Return the last layer's class logits (N, K + 1) and mask logits (N, h, w), float32."""
        return self.predictions[-1].logits[0].float(), self.predictions[-1].masks[0].float()

    def result(self, view: View) -> dict[str, Any]:
        (logits, masks), size, things = self.last, view.size, self.model.things
        parts: dict[str, queries.Result] = {}
        objects = None
        if "semantic" in self.request.tasks and self.model.resize_masks_first:
            parts["sem_seg"] = queries.SemanticScores(logits, size)
        if "panoptic" in self.request.tasks:
            thresholds = self.request.object_threshold, self.request.overlap_threshold
            parts["panoptic_seg"] = queries.PanopticMap(logits, size, things, *thresholds)
        if "instance" in self.request.tasks:
            parts["instances"] = objects = queries.Instances(logits, size, things, self.model.top_k)
        results = queries.collect(list(parts.values()), resized_strips(masks, view))
        result = dict(zip(parts, results, strict=True))
        if "semantic" in self.request.tasks and not self.model.resize_masks_first:
            strips = resized_strips(masks, view._replace(size=view.image))
            (scores,) = queries.collect([queries.SemanticScores(logits, view.image)], strips)
            result["sem_seg"] = resize(scores[None], size)[0]
        if objects is not None:
            masks, boxes, scores, classes = result["instances"]
            fields = {"pred_masks": masks, "pred_boxes": Boxes(boxes), "scores": scores, "pred_classes": classes}
            result["instances"] = Instances(size, **fields, sources=objects.sources)
        return result

    def visible(self, max_rows: int) -> Tensor:
        """Return the queries that win most pixels, as in panoptic inference."""
        logits, masks = self.last
        scores = logits.softmax(-1)[:, :-1].amax(-1)
        winner = (scores[:, None, None] * masks.sigmoid()).argmax(0)
        return torch.bincount(winner.flatten(), minlength=len(scores)).argsort(descending=True, stable=True)[:max_rows]

    def layers(self, rows: Tensor) -> list[Layer]:
        """Return what each layer did with these queries; they begin with the noisy masks."""
        assert self.x_t is not None
        chosen = [prediction.of_queries(rows) for prediction in self.predictions]
        attended = attended_regions(2 * self.model.to_masks(self.x_t[None, rows]) - 1, chosen, list(self.sizes))
        return [
            Layer(regions[0], prediction.masks[0].float(), prediction.logits[0].float())
            for regions, prediction in zip(attended, chosen, strict=True)
        ]
