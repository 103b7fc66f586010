"""Segmentation of image files, videos and cameras."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from tqdm import tqdm

from dformer.apps.demo.inputs import find_inputs, is_video, output_files, read_known
from dformer.apps.demo.records import coco_file, json_list
from dformer.apps.demo.tracks import Write, check_formats, track_files
from dformer.d2.data import read_image
from dformer.d2.data.video import open_video
from dformer.d2.engine.predictor import IdMap, Predictor
from dformer.d2.engine.result import Result
from dformer.d2.modeling.tracking import State
from dformer.postprocess.known import split_known
from dformer.utils.errors import UserError, did_you_mean
from dformer.visualize import DEFAULT_STYLE, Style, UInt8, draw_panels
from dformer.visualize.files import VideoWriter, save_picture

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
    refine: str | None = None  # such a PNG of coarse segments, to be made better (see `Predictor.refine`)
    samples: int | None = None  # answers that are merged (see `Predictor.ensemble`)
    tracker: str = ""  # the way to follow objects through videos, by default TEST.TRACKER
    objects: str | None = None  # such a PNG of the objects in a video's first frame, to be followed as 1, 2, ...
    tracks: tuple[str, ...] = ()  # formats in which tracks are written, see `track_files`
    frames: bool = False  # folders are videos, their images the frames
    object_classes: tuple[str, ...] = ()  # of the objects, by rising id, for models that need them


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
    _check(settings)
    files, problems = find_inputs(inputs, settings.recursive, Path(output), settings.frames)
    if not files and camera is None:
        return problems
    given = [file for file in (settings.inpaint, settings.refine) if file is not None]
    if given and (len(files) != 1 or camera is not None or is_video(files[0])):
        raise UserError(f"inpaint, refine: {given[0]} says what is known of one image; give one with --input")
    known = read_known(given[0]) if given else None
    objects = None if settings.objects is None else read_known(settings.objects)
    sources: list[Path | int] = [*files] if camera is None else [*files, camera]
    names = [Path(f"camera-{source}.mp4") if isinstance(source, int) else source for source in sources]
    cfgs, output = [cfg] if compare is None else [cfg, compare], Path(output)
    models = [Predictor(cfg) for cfg in cfgs]
    (task,), *_ = [model.make_request(settings.task, settings.threshold).tasks for model in models]
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
        captions = ["/".join(Path(cfg.MODEL.WEIGHTS).parts[-2:]) for cfg in cfgs]
        demo = Demo(models, captions, settings, writers, known, objects)
        jobs = iter(zip(sources, output_files(names, output), strict=True))
        with tqdm(total=len(sources), unit="file", disable=len(sources) == 1) as progress:
            for is_image, group in groupby(jobs, key=lambda job: isinstance(job[0], Path) and not is_video(job[0])):
                while batch := list(islice(group, settings.batch if is_image else 1)):
                    problems += demo.images(batch) if is_image else demo.video(*batch[0])
                    progress.update(len(batch))
    return problems


@dataclass(frozen=True)
class Demo:
    """Hold the models and, for each of them, a caption and the functions that write a record to its JSON files.

    What is `known` of the only image, the models complete or refine.
    """

    models: list[Predictor]
    captions: list[str]
    settings: Settings
    writers: list[list[Callable[[dict[str, Any]], None]]]
    known: IdMap | None = None
    objects: IdMap | None = None  # in the first frame of each video

    def images(self, files: Sequence[tuple[Any, Path]]) -> list[str]:
        """Segment a batch of image files, each with the file of its result, and return their problems."""
        read, problems = [], []
        for file, result in files:
            try:
                read.append((file, result, read_image(file)))
            except UserError as error:
                problems.append(str(error))
        segmented = self.segment([image for *_, image in read]) if read else []
        for (file, result, _), found in zip(read, segmented, strict=True):
            save_picture(self.draw(found), result)
            self.record(found, {"file": str(file), "picture": result.name})
        return problems

    def video(self, source: Path | int, result: Path) -> list[str]:
        """Segment a video file, a folder of frames or the video of a camera, and return its problems."""
        every = self.settings.every
        try:
            reader = open_video(source, every)
        except UserError as error:
            return [str(error)]
        name = f"camera {source}" if isinstance(source, int) else str(source)
        progress = tqdm(total=reader.length, desc=result.name, unit="frame")
        problems, size = reader.problems, None
        with ExitStack() as stack:
            stack.enter_context(reader)
            writer = stack.enter_context(VideoWriter(result, reader.fps / every))
            stack.enter_context(progress)
            add_tracks = stack.enter_context(track_files(self.settings.tracks, result.with_suffix("")))
            frames = iter(reader)
            states: list[State] = [None] * len(self.models)
            while batch := list(islice(frames, self.settings.batch)):
                images = [frame for _, frame in batch]
                found, states = self.track(images, states)
                for (index, image), results in zip(batch, found, strict=True):
                    if size not in (None, image.shape[:2]):
                        problems.append(f"{name}: frame {index} has another size; from it on, all objects are new")
                    size = image.shape[:2]
                    writer.write(self.draw(results))
                    self.record(results, {"file": name, "frame": index, "picture": result.name}, add_tracks)
                    progress.update()
        if not writer.frames:
            return [*problems, f"{name} has no frame that can be read: it is damaged"]
        missing = 0 if reader.length is None else reader.length - writer.frames - len(reader.problems)
        if reader.length and missing > 0.01 * reader.length:  # some headers are estimates
            problems.append(f"{name}: {writer.frames} of {reader.length} frames can be read: it is damaged")
        return problems

    def track(self, images: Sequence[UInt8], states: Sequence[State]) -> tuple[list[list[Result]], list[State]]:
        """Return what each model found in each of the next frames, and each model's state after them."""
        settings = self.settings
        asked: dict[str, Any] = {"tracker": settings.tracker, "threshold": settings.threshold}
        asked |= {"max_pixels": MAX_PIXELS, "samples": settings.samples}
        asked |= {"task": settings.task} if settings.samples is None else {}
        found, after = [], []
        for model, state in zip(self.models, states, strict=True):
            if state is None and self.objects is not None:
                _, masks = split_known(torch.from_numpy(self.objects))
                classes = _classes(model, settings.object_classes, len(masks))
                state = model.begin(images[0], masks.numpy(), classes, tracker=settings.tracker)
            results, state = model.track(images, state, **asked)
            found.append(results)
            after.append(state)
        return [list(results) for results in zip(*found, strict=True)], after

    def segment(self, images: Sequence[UInt8]) -> list[list[Result]]:
        """Return what each model found in each image."""
        settings = self.settings
        asked: dict[str, Any] = {"threshold": settings.threshold}
        if settings.refine is not None:
            assert self.known is not None
            _, masks = split_known(torch.from_numpy(self.known))
            found = [[model.refine(image, masks.numpy()) for image in images] for model in self.models]
        elif settings.samples is not None:
            found = [[model.ensemble(image, settings.samples, **asked) for image in images] for model in self.models]
        else:
            known = None if self.known is None else [self.known]
            asked |= {"task": settings.task, "max_pixels": MAX_PIXELS}
            found = [model(images, known=known, batch=len(images), **asked) for model in self.models]
        return [list(results) for results in zip(*found, strict=True)]

    def draw(self, results: Sequence[Result]) -> UInt8:
        """Return a picture of what each model found in an image, beside each other."""
        pictures = [result.draw(self.settings.style) for result in results]
        return draw_panels(pictures, self.captions) if len(pictures) > 1 else pictures[0]

    def record(self, found: Sequence[Result], source: dict[str, Any], others: Sequence[Write] = ()) -> None:
        """Write what each model found in an image to the JSON files, the first model's to `others`, too."""
        for k, (result, writers) in enumerate(zip(found, self.writers, strict=True)):
            height, width = result.size
            for write in (*writers, *(others if k == 0 else ())):
                write({**source, "height": height, "width": width, "segments": result.to_coco()})


def _classes(model: Predictor, names: Sequence[str], count: int) -> list[int] | None:
    """Return the class ids of the given objects; None without names."""
    if not names:
        return None
    if len(names) != count:
        raise UserError(f"object_classes: {len(names)} are given for {count} objects")
    for name in names:
        if name not in model.class_names:
            nearest = did_you_mean(name, model.class_names)
            raise UserError(f'object_classes: the model has no class "{name}"{nearest}')
    return [list(model.class_names).index(name) for name in names]


def _check(settings: Settings) -> None:
    for name, count in (("every", settings.every), ("batch", settings.batch)):
        if count < 1:
            raise UserError(f"{name} must be 1 or more, got {count}")
    check_formats(settings.tracks)
    chosen = [name for name in ("inpaint", "refine", "samples") if getattr(settings, name) is not None]
    if len(chosen) > 1:
        raise UserError(f"{', '.join(chosen)}: choose one of them")
