"""Segment image files, videos and what a camera sees."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from numpy.typing import NDArray
from tqdm import tqdm

from dformer.apps.demo.inputs import find_inputs, is_video, output_files
from dformer.apps.demo.records import CocoFile, JsonList, Size, resized, segment_record
from dformer.d2.data import model_classes, read_image
from dformer.d2.engine.predictor import Predictor
from dformer.utils.errors import UserError
from dformer.visualize import ALPHA, Segment, draw_panels, draw_segments, fit_size
from dformer.visualize.results import INSTANCE_THRESHOLD, TASKS, result_segments, save_picture
from dformer.visualize.video import VideoReader, VideoWriter

# Results of larger images are computed and drawn at this size, as 100 masks of a 12 megapixel photograph take 5 GB,
# several times over. The network sees less anyway, about one megapixel.
MAX_PIXELS = 1920 * 1080

Array = NDArray[np.uint8]


@dataclass(frozen=True)
class Settings:
    """What is done with the inputs.

    Attributes:
        task: "panoptic", "instance" or "semantic"; by default INPUT.TASK, for which the model was trained.
        threshold: segments of a lower score are left out, 0 to 1. By default TEST.OBJECT_THRESHOLD for panoptic results
            and 0.5 for instances.
        alpha: opacity of the colours, 0 to 1.
        every: frames of a video from one that is segmented to the next.
        batch: frames of a video that the model takes at once.
        coco: whether coco.json is written, too.
    """

    task: str | None = None
    threshold: float | None = None
    alpha: float = ALPHA
    every: int = 1
    batch: int = 4
    coco: bool = False


def segment_files(
    cfg: CfgNode,
    inputs: Sequence[str],
    output: str | Path,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    compare: CfgNode | None = None,
    camera: int | None = None,
) -> list[str]:
    """Segment images and videos; write a picture or video of each, and `segments.json`, to the folder `output`.

    Pictures and videos appear whole, one by one, and the JSON files at the end. An interruption ends all of them with
    the frame that was written last: what is there then is whole. Inputs are never overwritten.

    Args:
        cfg: config of the model, its trained weights in MODEL.WEIGHTS.
        inputs: files, folders (for what lies in them) and patterns ("dir/*.jpg").
        settings: see there.
        compare: of a second model, whose results are drawn beside the first's.
        camera: number of a camera that is segmented after the files until an interruption.

    Returns:
        What could not be read and why, a sentence each; empty if all went well.

    Raises:
        UserError: an argument or a config is wrong, weights do not fit, or `output` cannot be written to.
    """
    task = settings.task or cfg.INPUT.TASK
    _check(task, settings)
    files, problems = find_inputs(inputs)
    if not files and camera is None:
        return problems
    sources: list[Path | int] = [*files] if camera is None else [*files, camera]
    names = [Path(f"camera-{source}.mp4") if isinstance(source, int) else source for source in sources]
    with Demo([cfg] if compare is None else [cfg, compare], task, settings, Path(output)) as demo:
        progress = tqdm(sources, unit="file", disable=len(sources) == 1)
        for source, result in zip(progress, output_files(names, Path(output)), strict=True):
            if isinstance(source, int) or is_video(source):
                problems += demo.video(source, result)
            else:
                problems += demo.image(source, result)
    return problems


class Demo:
    """Models, and the JSON files that their results go to; to be used in a `with` statement."""

    def __init__(self, cfgs: Sequence[CfgNode], task: str, settings: Settings, output: Path) -> None:
        self.settings = settings
        self.models = [Model(cfg, task, settings.threshold) for cfg in cfgs]
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"output folder {output} cannot be made: {error.strerror}") from error
        with ExitStack() as files:
            self.lists = [
                files.enter_context(JsonList(output / name, "images", {"task": task, "weights": cfg.MODEL.WEIGHTS}))
                for name, cfg in zip(("segments.json", "compared.json"), cfgs, strict=False)
            ]
            self.coco: CocoFile | None = None
            if settings.coco:
                first = self.models[0]
                self.coco = files.enter_context(CocoFile(output / "coco.json", first.class_names, first.things))
            self.files = files.pop_all()

    def __enter__(self) -> "Demo":
        return self

    def __exit__(self, *error: Any) -> None:
        self.files.__exit__(*error)

    def image(self, file: Path, result: Path) -> list[str]:
        """Segment an image file. Returns what is wrong with it."""
        try:
            image = read_image(file)
        except UserError as error:
            return [str(error)]
        picture, found = self.segment([image])[0]
        save_picture(picture, result)
        self.record(found, image, {"file": str(file), "picture": result.name})
        return []

    def video(self, source: Path | int, result: Path) -> list[str]:
        """Segment a video, or what a camera sees. Returns what is wrong with it."""
        every = self.settings.every
        try:
            reader = VideoReader(source, every)
        except UserError as error:
            return [str(error)]
        name = f"camera {source}" if isinstance(source, int) else str(source)
        progress = tqdm(total=reader.length, desc=result.name, unit="frame")
        with reader, VideoWriter(result, reader.fps / every) as writer, progress:
            frames = iter(reader)
            while batch := list(islice(frames, self.settings.batch)):
                found = self.segment([frame for _, frame in batch])
                for (index, frame), (picture, segments) in zip(batch, found, strict=True):
                    writer.write(picture)
                    self.record(segments, frame, {"file": name, "frame": index, "picture": result.name})
                    progress.update()
        if not writer.frames or (reader.length and writer.frames < 0.99 * reader.length):  # some headers are estimates
            return [f"{name} ends after {writer.frames} of {reader.length or 'its'} frames: it is damaged"]
        return []

    def segment(self, images: Sequence[Array]) -> list[tuple[Array, list[list[Segment]]]]:
        """For each image, a picture, and the segments that each model finds."""
        sizes = [fit_size(image.shape[0], image.shape[1], max_pixels=MAX_PIXELS) for image in images]
        found = list(zip(*(model(images, sizes) for model in self.models), strict=True))
        drawn = []
        for image, size, by_model in zip(images, sizes, found, strict=True):
            pictures = [
                draw_segments(resized(image, size), segments, model.class_names, self.settings.alpha)
                for model, segments in zip(self.models, by_model, strict=True)
            ]
            captions = [model.weights for model in self.models]
            drawn.append((draw_panels(pictures, captions) if len(pictures) > 1 else pictures[0], list(by_model)))
        return drawn

    def record(self, found: list[list[Segment]], image: Array, source: dict[str, Any]) -> None:
        """Write down the segments that each model found in an image."""
        size = image.shape[0], image.shape[1]
        for model, segments, file in zip(self.models, found, self.lists, strict=True):
            names = model.class_names
            records = [segment_record(k, segment, size, names) for k, segment in enumerate(segments, start=1)]
            record = {**source, "height": size[0], "width": size[1], "segments": records}
            file.add(record)
            if self.coco is not None and model is self.models[0]:
                self.coco.add(record)


class Model:
    """A trained model for one task.

    Attributes:
        class_names, things: names of its classes, and the ids of those that are things.
        weights: the end of its checkpoint's path.
    """

    def __init__(self, cfg: CfgNode, task: str, threshold: float | None) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.TEST.TASKS = (task,)
        if task == "panoptic" and threshold is not None:
            cfg.TEST.OBJECT_THRESHOLD = threshold
        self.task = task
        self.threshold = INSTANCE_THRESHOLD if threshold is None else threshold
        self.predictor = Predictor(cfg)
        self.class_names, self.things = model_classes(cfg)
        self.weights = "/".join(Path(cfg.MODEL.WEIGHTS).parts[-2:])

    def __call__(self, images: Sequence[Array], sizes: Sequence[Size]) -> list[list[Segment]]:
        """Segments of each image, their masks of the size asked for."""
        results = self.predictor(images, sizes)
        if self.task == "instance":
            for result in results:
                result["instances"] = result["instances"][result["instances"].scores >= self.threshold]
        return [result_segments(result, self.task) for result in results]


def _check(task: str, settings: Settings) -> None:
    threshold = settings.threshold
    if task not in TASKS:
        raise UserError(f'task "{task}" does not exist; choose one of {", ".join(TASKS)}')
    if threshold is not None and task == "semantic":
        raise UserError("semantic results have no scores, so that there is no threshold to choose")
    for name, share in (("threshold", threshold), ("opacity alpha", settings.alpha)):
        if share is not None and not 0 <= share <= 1:
            raise UserError(f"the {name} must be in 0..1, got {share:g}")
    for name, count in (("every", settings.every), ("batch", settings.batch)):
        if count < 1:
            raise UserError(f"{name} must be 1 or more, got {count}")
