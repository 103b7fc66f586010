"""What all meta-architectures share: images in, losses or results out."""

from abc import ABC, abstractmethod
from collections import defaultdict
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from dformer.losses.criterion import Criterion, MaskProducts, Target
from dformer.models.mask_decoder import Prediction
from dformer.postprocess import queries as postprocess
from dformer.postprocess.queries import Size
from dformer.utils import rng


class Segmenter(nn.Module, ABC):
    """A backbone, a head, a criterion and the post-processing, on Detectron2's inputs and outputs.

    What is drawn at random in training depends on `seed`, `iteration` and the image's id alone; at inference on `seed`.

    Attributes:
        iteration: training forwards so far; a resumed run sets it.
    """

    things: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: nn.Module,
        criterion: Criterion,
        things: list[bool],
        pixel_mean: list[float],
        pixel_std: list[float],
        size_divisibility: int,
        tasks: tuple[str, ...],
        object_threshold: float,
        overlap_threshold: float,
        top_k: int,
        training_seed: int,
        inference_seed: int,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.criterion = criterion
        self.size_divisibility = size_divisibility
        self.tasks = tasks
        self.object_threshold = object_threshold
        self.overlap_threshold = overlap_threshold
        self.top_k = top_k
        self.training_seed = training_seed
        self.inference_seed = inference_seed
        self.iteration = 0
        self.register_buffer("things", torch.tensor(things), persistent=False)
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.pixel_mean.device

    @abstractmethod
    def training_predictions(
        self, features: list[Tensor], targets: list[Target], generators: list[torch.Generator]
    ) -> list[Prediction]:
        """Predictions to be supervised, from features of strides 4, 8, 16, 32."""

    @abstractmethod
    def predict(self, features: list[Tensor], generators: list[torch.Generator]) -> Prediction:
        """The result, from features of strides 4, 8, 16, 32 and one generator an image."""

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """Losses when training, results otherwise.

        Args:
            batched_inputs: an item an image: `image` (3, H, W) in 0..255; `height` and `width` of the result, if not H
                and W; for training `instances` with `gt_classes` (G,) and `gt_masks` (G, H, W) bool, and `image_id`.

        Returns:
            Training: losses by name, weighted, to be summed. Inference: an item an image, of the results asked for:
            `sem_seg` (K, height, width) class scores; `panoptic_seg`, a map (height, width) int32 and its segments
            (dicts of `id`, `isthing`, `category_id`, `score`, `area`); `instances` with `pred_masks`, `pred_boxes`,
            `scores`, `pred_classes`.
        """
        return self.losses(batched_inputs) if self.training else self.infer(batched_inputs)

    def losses(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Weighted losses of a batch."""
        images = self.preprocess(batched_inputs)
        targets = [self.target(item["instances"], images.tensor.shape[-2:]) for item in batched_inputs]
        generators = [
            rng.generator(self.device, self.training_seed, self.iteration, item.get("image_id", index))
            for index, item in enumerate(batched_inputs)
        ]
        self.iteration += 1
        predictions = self.training_predictions(self.features(images.tensor), targets, generators)
        logits = torch.stack([prediction.logits for prediction in predictions])
        queries = torch.stack([prediction.mask_embed for prediction in predictions])
        masks = MaskProducts(queries, predictions[0].mask_features.permute(0, 2, 3, 1).unbind())
        return self.criterion(logits, masks, targets, generators)

    @torch.no_grad()
    def infer(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Results of a batch. Only images of one padded size share a forward, so that none depends on the others."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, item in enumerate(batched_inputs):
            padded = tuple(-(-side // self.size_divisibility) for side in item["image"].shape[1:])
            groups[padded].append(index)
        results: dict[int, dict[str, Any]] = {}
        for group in groups.values():
            images = self.preprocess([batched_inputs[index] for index in group])
            generators = [rng.generator(self.device, self.inference_seed) for _ in group]
            prediction = self.predict(self.features(images.tensor), generators)
            logits, masks = prediction.logits.float(), prediction.masks.float()
            for position, index in enumerate(group):
                size = images.image_sizes[position]
                item = batched_inputs[index]
                results[index] = self.result(
                    logits[position],
                    masks[position],
                    (images.tensor.shape[2], images.tensor.shape[3]),
                    size,
                    (item.get("height", size[0]), item.get("width", size[1])),
                )
        return [results[index] for index in range(len(batched_inputs))]

    def preprocess(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalised images, padded with zeros at the right and the bottom to one size."""
        images = [(item["image"].to(self.device) - self.pixel_mean) / self.pixel_std for item in batched_inputs]
        return ImageList.from_tensors(images, self.size_divisibility)

    def features(self, images: Tensor) -> list[Tensor]:
        """Maps of strides 4, 8, 16, 32, channels last where the backbone keeps that: convolutions are faster so."""
        maps = self.backbone(images.contiguous(memory_format=torch.channels_last))
        return [maps[key] for key in ("res2", "res3", "res4", "res5")]

    def target(self, instances: Instances, canvas: torch.Size) -> Target:
        """Ground truth of an image, its masks padded to the canvas."""
        masks = instances.gt_masks.to(self.device)
        padding = (0, canvas[1] - masks.shape[2], 0, canvas[0] - masks.shape[1])
        return Target(instances.gt_classes.to(self.device), F.pad(masks, padding))

    def result(self, logits: Tensor, masks: Tensor, canvas: Size, image_size: Size, size: Size) -> dict[str, Any]:
        """Results of one image of `size`, from class logits (N, K + 1) and mask logits (N, canvas/4)."""
        parts: dict[str, postprocess.Result] = {}
        if "semantic" in self.tasks:
            parts["sem_seg"] = postprocess.SemanticScores(logits, size)
        if "panoptic" in self.tasks:
            thresholds = self.object_threshold, self.overlap_threshold
            parts["panoptic_seg"] = postprocess.PanopticMap(logits, size, self.things, *thresholds)
        if "instance" in self.tasks:
            parts["instances"] = postprocess.Instances(logits, size, self.things, self.top_k)
        strips = postprocess.resized_strips(masks, canvas, image_size, size)
        result = dict(zip(parts, postprocess.collect(list(parts.values()), strips), strict=True))
        if "panoptic_seg" in result:
            segment_map, segments = result["panoptic_seg"]
            result["panoptic_seg"] = segment_map, [self.segment_info(segment) for segment in segments]
        if "instances" in result:
            objects = result["instances"]
            result["instances"] = Instances(
                size,
                pred_masks=objects.masks,
                pred_boxes=Boxes(objects.boxes),
                scores=objects.scores,
                pred_classes=objects.classes,
            )
        return result

    def segment_info(self, segment: postprocess.Segment) -> dict[str, Any]:
        """A segment in Detectron2's form."""
        return {
            "id": segment.id,
            "isthing": bool(self.things[segment.category]),
            "category_id": segment.category,
            "score": segment.score,
            "area": segment.area,
        }
