"""A trained model, from images to results."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import Instances
from numpy.typing import ArrayLike, NDArray
from PIL.Image import Image as PILImage

from dformer.d2.checkpoint.checkpointer import fetch_checkpoint, load_weights
from dformer.d2.config.device import inference_autocast
from dformer.d2.data import model_classes
from dformer.d2.data.augmentations import test_augmentations
from dformer.d2.data.video import open_video
from dformer.d2.engine.result import Result, merge_results
from dformer.d2.evaluation.test_time_augmentation import augment
from dformer.d2.modeling.meta_arch import Request, Segmenter, Step
from dformer.d2.modeling.tracking import State, build_tracker, number_things
from dformer.data.images import to_image
from dformer.postprocess.known import coarse_masks
from dformer.postprocess.tracking import Tracks
from dformer.utils.errors import UserError
from dformer.utils.memory import keep_pages
from dformer.visualize import INSTANCE_THRESHOLD, fit_size, resize

IdMap = NDArray[np.uint8]  # (H, W), ids of segments; 0 where nothing is known
Image = NDArray[np.uint8]  # (H, W, 3) RGB
Source = str | Path | PILImage | NDArray[Any]  # see `to_image`
Size = tuple[int, int]  # height, width


class Predictor:
    """Run the model of a cfg with the weights of MODEL.WEIGHTS, on MODEL.DEVICE.

    Images are resized as for evaluation (INPUT.MIN_SIZE_TEST, MAX_SIZE_TEST; TEST.AUG). It runs in float32, with
    TEST.AMP.ENABLED in mixed precision. The same image and request give the same result at each call.

    With `compiled`, backbone and decoders are compiled by torch.compile, at the first image and again when the size
    changes; from then on for all sizes.

    Attributes:
        model: the model, in evaluation mode; `model.request` is what a cfg asks for.
        class_names, things: names of the model's classes, and the ids of those that are things (see `model_classes`).
        task: the one that it was trained for, INPUT.TASK, if TEST.TASKS has it.
        tracker: the name of the way to follow objects through videos, TEST.TRACKER.
    """

    def __init__(self, cfg: CfgNode, compiled: bool = False) -> None:
        if not cfg.MODEL.WEIGHTS:
            raise UserError("the model needs trained weights: give a checkpoint with MODEL.WEIGHTS <file>")
        keep_pages()
        self.class_names, self.things = model_classes(cfg)
        self.task: str = cfg.INPUT.TASK if cfg.INPUT.TASK in cfg.TEST.TASKS else cfg.TEST.TASKS[0]
        self.model: Segmenter = build_model(cfg).eval()
        self.model.check(self.model.request)
        checkpoint = fetch_checkpoint(cfg.MODEL.WEIGHTS, averaged=cfg.MODEL.EMA_DECAY > 0)
        load_weights(self.model, checkpoint, cfg.MODEL.WEIGHTS)
        if compiled:
            self.model.compile_parts()
        self.tracker: str = cfg.TEST.TRACKER
        self._is_bgr = cfg.INPUT.FORMAT == "BGR"
        self._augmentations = T.AugmentationList(test_augmentations(cfg))
        self._augmented = augment(cfg, self.model)
        self._autocast = inference_autocast(cfg)

    @overload
    def __call__(self, images: Source, **asked: Any) -> Result: ...
    @overload
    def __call__(self, images: Sequence[Source], **asked: Any) -> list[Result]: ...
    def __call__(
        self,
        images: Any,
        *,
        known: Any = None,
        batch: int = 4,
        max_pixels: float = math.inf,
        **asked: Any,
    ) -> Result | list[Result]:
        """Segment an image, or a list of images, and return its result, or theirs.

        Args:
            images: a file, an array (H, W, 3) RGB or (H, W) grey, uint8, or a picture of PIL's; or a list of these.
            known: for models that complete masks, what is known of the image, or a list (see `predict`).
            batch: images at once.
            max_pixels: results of larger images are computed at this size.
            asked: `task`, `threshold`, `steps`, `seed`, ... as of `make_request`.

        Raises:
            UserError: an image cannot be read or is not one, or the model cannot do what is asked for.
        """
        if not isinstance(images, list | tuple):
            known = None if known is None else [known]
            return self([images], known=known, batch=batch, max_pixels=max_pixels, **asked)[0]
        request = self.make_request(**asked)
        results: list[Result] = []
        for start in range(0, len(images), batch):
            read = [to_image(image) for image in images[start : start + batch]]
            sizes = [fit_size(image.shape[0], image.shape[1], max_pixels=max_pixels) for image in read]
            predictions = self.predict(read, sizes, request, known and known[start : start + batch])
            results += [
                self._result(found, image, size, request)
                for found, image, size in zip(predictions, read, sizes, strict=True)
            ]
        return results

    def steps(self, image: Source, **asked: Any) -> Iterator[Result]:
        """Yield the result of an image after each sampling step, with its time `t`; arguments as of a call."""
        request, read = self.make_request(**asked), to_image(image)
        size = read.shape[0], read.shape[1]
        for step in self.predict_steps([read], [size], request):
            yield self._result(step.results[0], read, size, request, step.t)

    def video(
        self,
        file: str | Path | int,
        *,
        every: int = 1,
        batch: int = 4,
        masks: ArrayLike | None = None,
        classes: Sequence[int] | None = None,
        **asked: Any,
    ) -> Iterator[Result]:
        """Yield the result of each frame of a video, with its number, `frame`, and the objects' numbers, `tracks`.

        Args:
            file: a video file, a folder of frames, or the number of a camera.
            every: each n-th frame only.
            batch: frames at once.
            masks: (M, H, W) of objects in the first frame, which are followed as 1..M (see `begin`).
            classes: (M,) of these objects, where they are known.
            asked: as of `track`.
        """
        state: State = None
        with open_video(file, every) as reader:
            frames = iter(reader)
            while read := list(islice(frames, batch)):
                images = [frame for _, frame in read]
                if masks is not None and state is None:
                    state = self.begin(images[0], masks, classes, **asked)
                results, state = self.track(images, state, **asked)
                for (number, _), result in zip(read, results, strict=True):
                    yield replace(result, frame=number)

    def track(
        self,
        images: Sequence[Source],
        state: State = None,
        *,
        tracker: str = "",
        samples: int | None = None,
        max_pixels: float = math.inf,
        **asked: Any,
    ) -> tuple[list[Result], State]:
        """Segment the next frames of a video; return their results, with the objects' numbers, and the state after.

        Args:
            images: as of a call.
            state: what the call for the frames before has returned, or `begin`; None at the first.
            tracker: one of `TRACKERS`, by default TEST.TRACKER.
            samples: merge so many answers for each frame (see `ensemble`); they are followed by association.
            max_pixels: results of larger images are computed at this size.
            asked: `task`, `threshold`, `steps`, `seed`, ... as of `make_request`. Label maps have no objects to follow.
        """
        if samples is not None:
            found = [self.ensemble(image, samples, **asked) for image in images]
            state = state or Tracks()
            for result in found:
                state = number_things(result.predictions, self.make_request("panoptic"), state)
            return found, state
        request = self.make_request(**asked)
        if request.tasks == ("semantic",):
            return self(list(images), batch=len(images), max_pixels=max_pixels, **asked), None
        read = [to_image(image) for image in images]
        sizes = [fit_size(image.shape[0], image.shape[1], max_pixels=max_pixels) for image in read]
        with torch.no_grad(), self._autocast:
            frames = self._batch(read, sizes)
            predictions, state = build_tracker(tracker or self.tracker, self.model, request)(frames, state)
        return [self._result(*each, request) for each in zip(predictions, read, sizes, strict=True)], state

    def begin(
        self,
        image: Source,
        masks: ArrayLike,
        classes: Sequence[int] | None = None,
        *,
        tracker: str = "",
        **asked: Any,
    ) -> State:
        """Return the state in which given objects of a video's first frame are followed, as 1..M.

        Args:
            image: the first frame, which `track` then gets with this state.
            masks: (M, H, W), 0 outside.
            classes: (M,), where they are known.
            tracker: as of `track`; "queries" cannot begin so.
            asked: as of `track`.
        """
        read = to_image(image)
        given = coarse_masks(masks, None, (read.shape[0], read.shape[1])).numpy()
        (item,) = self._batch([read], None)
        request = self.make_request(**{k: v for k, v in asked.items() if k not in ("samples", "max_pixels")})
        return build_tracker(tracker or self.tracker, self.model, request).begin(item, given, classes)

    def refine(
        self,
        image: Source,
        masks: ArrayLike | None = None,
        *,
        boxes: ArrayLike | None = None,
        classes: Sequence[int] | None = None,
        time: int = 300,
        steps: int = 1,
        seed: int = 0,
    ) -> Result:
        """Return better masks for coarse ones, or for boxes, in their order, with the model's class and score.

        A mask of which nothing is left stays as it was given. For DFormers with DIFFUSION.ASSIGNMENT denoising.

        Args:
            image: as of a call.
            masks: (M, H, W), 0 outside.
            boxes: (M, 4) in their place: left, top, right, bottom in pixels; the last two are outside of the box.
            classes: (M,), where they are known; else the model says.
            time: from which they are denoised, 0 to T - 1: the higher, the less they are trusted.
            steps: sampling steps.
            seed: of the noise.
        """
        read = to_image(image)
        given = coarse_masks(masks, boxes, (read.shape[0], read.shape[1]))
        (item,) = self._batch([read], None)
        item["coarse_masks"] = F.interpolate(given[None].float(), item["image"].shape[1:], mode="nearest-exact")[0] > 0
        with torch.no_grad(), self._autocast:
            logits, found = self.model.refine(item, time, steps, seed)
        found = found.cpu()
        found = torch.where(found.flatten(1).any(1)[:, None, None], found, given)
        scores, chosen = logits.cpu().softmax(-1)[:, :-1].max(-1)
        if classes is not None:
            chosen = torch.as_tensor(classes)
            scores = logits.cpu().softmax(-1)[torch.arange(len(chosen)), chosen]
        instances = Instances(read.shape[:2], pred_masks=found, scores=scores, pred_classes=chosen)
        return Result(read, {"instances": instances}, "instance", self.class_names, 0.0, read.shape[:2], float(time))

    def ensemble(self, image: Source, samples: int = 8, **asked: Any) -> Result:
        """Return what most of several answers, from different noise, agree on; a score says how much they do.

        Args:
            image: as of a call.
            samples: how many, at least 2.
            asked: as of a call; with `seed`, that of the first one.

        Returns:
            A panoptic result with `agreement`.
        """
        if samples < 2:
            raise UserError(f"samples must be at least 2, got {samples}")
        first = self.make_request(task="panoptic", **asked)
        if "seed" not in self.model.options:
            raise UserError(f"{type(self.model).__name__} has no seed: its answers are all the same")
        read = to_image(image)
        size = read.shape[0], read.shape[1]
        requests = [replace(first, seed=first.seed + k) for k in range(samples)]
        found = [self.predict([read], request=request)[0] for request in requests]
        return merge_results([self._result(each, read, size, first) for each in found])

    def make_request(self, task: str | None = None, threshold: float | None = None, **numbers: float) -> Request:
        """Return the request of a task, by default the model's, with its default numbers where none is given.

        Args:
            task: one of the model's tasks.
            threshold: least score of a segment, 0 to 1; default: panoptic TEST.OBJECT_THRESHOLD, instance 0.5.
            numbers: `steps`, `seed`, `proposals`, `overlap_threshold`, as far as the model knows them.
        """
        task = task or self.task
        default = INSTANCE_THRESHOLD if task == "instance" else self.model.request.object_threshold
        if threshold is not None and task == "semantic":
            raise UserError("threshold: semantic results have no scores; leave it out")
        known = {**dict.fromkeys(self.model.options, Integral), "overlap_threshold": Real}
        for name, number in numbers.items():
            if name not in known:
                raise UserError(f"{name}: {type(self.model).__name__} has no such number; it has {', '.join(known)}")
            if not isinstance(number, known[name]):
                raise UserError(
                    f"{name} must be {'a whole' if known[name] is Integral else 'a'} number, got {number!r}"
                )
        least = default if threshold is None else threshold
        request = replace(self.model.request, tasks=(task,), object_threshold=least, **numbers)  # type: ignore[arg-type]
        self.model.check(request)
        return request

    def _result(
        self, predictions: dict[str, Any], image: Image, size: Size, request: Request, t: float | None = None
    ) -> Result:
        (task,) = request.tasks
        given = image.shape[0], image.shape[1]
        return Result(resize(image, size), predictions, task, self.class_names, request.object_threshold, given, t)

    @torch.no_grad()
    def predict(
        self,
        images: Sequence[Image],
        sizes: Sequence[Size] | None = None,
        request: Request | None = None,
        known: Sequence[IdMap | None] | None = None,
    ) -> list[dict[str, Any]]:
        """Return the results of a batch of images in Detectron2's form, see `Segmenter.forward`.

        Args:
            images: each (H, W, 3) RGB.
            sizes: height and width of each result; by default those of the image.
            request: by default what the cfg asks for; a `UserError` if the model cannot do it.
            known: for models that complete masks (`model.completes`), what is known of each image's, of its size.
        """
        if self._augmented is not self.model and known is None:
            if request not in (None, self.model.request):
                raise UserError("TEST.AUG.ENABLED: what is asked for is in the config then; leave the arguments out")
            with self._autocast:
                return self._augmented(self._batch(images, sizes))
        for step in self.predict_steps(images, sizes, request, known):  # noqa: B007
            pass
        return step.results

    def predict_steps(
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
            raise UserError(
                f"{type(self.model).__name__} cannot complete masks; LDMSeg can, and "
                "a DFormer trained with DIFFUSION.ASSIGNMENT denoising"
            )
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
