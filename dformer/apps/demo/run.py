"""Segmentation of image files, videos and cameras."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from tqdm import tqdm

from dformer.apps.demo.inputs import find_inputs, is_video, output_files, read_known
from dformer.apps.demo.records import Size, coco_file, json_list, resize, segment_record
from dformer.d2.data import read_image
from dformer.d2.engine.predictor import IdMap, Predictor
from dformer.postprocess import TASKS
from dformer.utils.errors import UserError
from dformer.visualize import (
    DEFAULT_STYLE,
    INSTANCE_THRESHOLD,
    Segment,
    Style,
    UInt8,
    draw_panels,
    draw_segments,
    fit_size,
    result_segments,
)
from dformer.visualize.files import VideoReader, VideoWriter, save_picture

# Results of larger images are computed and drawn at this size: 100 masks of 12 megapixels take 5 GB, and several copies
# are needed. The network's input is smaller anyway, about one megapixel.
MAX_PIXELS = 1920 * 1080


@dataclass(frozen=True)
class Settings:
    """Hold the settings of `segment_files`."""

    task: str | None = None  # one of TASKS; by default INPUT.TASK, for which the model was trained
    threshold: float | None = None  # min. score, 0 to 1; default: panoptic TEST.OBJECT_THRESHOLD, instance 0.5
    style: Style = DEFAULT_STYLE  # of the pictures
    every: int = 1  # segment each n-th frame of a video only
    batch: int = 4  # images, or frames of a video, in a batch
    recursive: bool = False  # also search the folders in a folder
    coco: bool = False  # also write coco.json
    # A PNG of what is known of the one input: 0 where nothing is, and else ids of segments (see `Predictor.predict`).
    inpaint: str | None = None


def segment_files(
    cfg: CfgNode,
    inputs: Sequence[str],
    output: str | Path,
    settings: Settings = Settings(),  # noqa: B008 (frozen)
    compare: CfgNode | None = None,
    camera: int | None = None,
) -> list[str]:
    """Segment images and videos; write a picture or video of each, and `segments.json`, to the folder `output`.

    Each file appears when it is complete, the JSON files at the end. KeyboardInterrupt ends all of them with the frame
    that was written last. Inputs are never overwritten.

    Args:
        cfg: config of the model, its trained weights in MODEL.WEIGHTS.
        inputs: files, folders and patterns ("dir/*.jpg").
        compare: config of a second model, whose results are drawn beside the first's.
        camera: number of a camera to be segmented after the files, until KeyboardInterrupt.

    Returns:
        Problems of inputs that could not be read, a sentence each; empty if there were none.

    Raises:
        UserError: an argument or a config is wrong, weights do not fit, or `output` cannot be written.
    """
    task = settings.task or cfg.INPUT.TASK
    _check(task, settings)
    files, problems = find_inputs(inputs, settings.recursive, Path(output))
    if not files and camera is None:
        return problems
    known = None
    if settings.inpaint is not None:
        if len(files) != 1 or camera is not None or is_video(files[0]):
            raise UserError(f"inpaint: {settings.inpaint} says what is known of one image; give one with --input")
        known = read_known(settings.inpaint)
    sources: list[Path | int] = [*files] if camera is None else [*files, camera]
    names = [Path(f"camera-{source}.mp4") if isinstance(source, int) else source for source in sources]
    cfgs, output = [cfg] if compare is None else [cfg, compare], Path(output)
    models = [Model(cfg, task, settings.threshold, known) for cfg in cfgs]
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {output} cannot be made: {error.strerror}") from error
    with ExitStack() as stack:
        writers: list[list[Callable[[dict[str, Any]], None]]] = []
        for name, cfg in zip(("segments.json", "compared.json"), cfgs, strict=False):
            about = {"task": task, "weights": cfg.MODEL.WEIGHTS}
            writers.append([stack.enter_context(json_list(output / name, "images", about))])
        if settings.coco:
            coco = coco_file(output / "coco.json", models[0].class_names, models[0].things)
            writers[0].append(stack.enter_context(coco))
        demo = Demo(models, settings, writers)
        jobs = iter(zip(sources, output_files(names, output), strict=True))
        with tqdm(total=len(sources), unit="file", disable=len(sources) == 1) as progress:
            for is_image, group in groupby(jobs, key=lambda job: isinstance(job[0], Path) and not is_video(job[0])):
                while batch := list(islice(group, settings.batch if is_image else 1)):
                    problems += demo.images(batch) if is_image else demo.video(*batch[0])
                    progress.update(len(batch))
    return problems


@dataclass(frozen=True)
class Demo:
    """Hold the models and, for each of them, the functions that write a record to its JSON files."""

    models: list["Model"]
    settings: Settings
    writers: list[list[Callable[[dict[str, Any]], None]]]

    def images(self, files: Sequence[tuple[Any, Path]]) -> list[str]:
        """Segment a batch of image files, each with the file of its result, and return their problems."""
        read, problems = [], []
        for file, result in files:
            try:
                read.append((file, result, read_image(file)))
            except UserError as error:
                problems.append(str(error))
        segmented = self.segment([image for *_, image in read]) if read else []
        for (file, result, image), (picture, found) in zip(read, segmented, strict=True):
            save_picture(picture, result)
            self.record(found, image, {"file": str(file), "picture": result.name})
        return problems

    def video(self, source: Path | int, result: Path) -> list[str]:
        """Segment a video file or the video of a camera, and return its problems."""
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

    def segment(self, images: Sequence[UInt8]) -> list[tuple[UInt8, list[list[Segment]]]]:
        """Return a picture of each image, and the segments that each model found in it."""
        sizes = [fit_size(image.shape[0], image.shape[1], max_pixels=MAX_PIXELS) for image in images]
        found = list(zip(*(model(images, sizes) for model in self.models), strict=True))
        drawn = []
        for image, size, by_model in zip(images, sizes, found, strict=True):
            pictures = [
                draw_segments(resize(image, size), segments, model.class_names, self.settings.style)
                for model, segments in zip(self.models, by_model, strict=True)
            ]
            captions = [model.weights for model in self.models]
            drawn.append((draw_panels(pictures, captions) if len(pictures) > 1 else pictures[0], list(by_model)))
        return drawn

    def record(self, found: list[list[Segment]], image: UInt8, source: dict[str, Any]) -> None:
        """Write each model's segments of an image to the JSON files."""
        size = image.shape[0], image.shape[1]
        for model, segments, writers in zip(self.models, found, self.writers, strict=True):
            records = [segment_record(k, s, size, model.class_names) for k, s in enumerate(segments, start=1)]
            for write in writers:
                write({**source, "height": size[0], "width": size[1], "segments": records})


class Model:
    """Segment images with a trained model, for one task; `weights` is the end of its checkpoint's path.

    What is `known` of the only image, it completes.
    """

    def __init__(self, cfg: CfgNode, task: str, threshold: float | None, known: IdMap | None = None) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        cfg.TEST.TASKS = (task,)
        if task == "panoptic" and threshold is not None:
            cfg.TEST.OBJECT_THRESHOLD = threshold
        self.task, self.known = task, known
        self.threshold = INSTANCE_THRESHOLD if threshold is None else threshold
        self.predictor = Predictor(cfg)
        self.class_names, self.things = self.predictor.class_names, self.predictor.things
        self.weights = "/".join(Path(cfg.MODEL.WEIGHTS).parts[-2:])

    def __call__(self, images: Sequence[UInt8], sizes: Sequence[Size]) -> list[list[Segment]]:
        """Return the segments of each image, their masks of the size asked for."""
        results = self.predictor.predict(images, sizes, known=None if self.known is None else [self.known])
        return [result_segments(result, self.task, self.threshold) for result in results]


def _check(task: str, settings: Settings) -> None:
    threshold = settings.threshold
    if task not in TASKS:
        raise UserError(f'task "{task}" does not exist; choose one of {", ".join(TASKS)}')
    if threshold is not None and task == "semantic":
        raise UserError("threshold: semantic results have no scores; leave it out")
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"threshold must be in 0..1, got {threshold:g}")
    for name, count in (("every", settings.every), ("batch", settings.batch)):
        if count < 1:
            raise UserError(f"{name} must be 1 or more, got {count}")
