"""What a model has found in an image."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dformer.data.segmentations import area_and_box, encode_mask, json_rle
from dformer.postprocess.ensemble import merge_samples
from dformer.utils.errors import UserError
from dformer.utils.files import write_json
from dformer.visualize import (
    DEFAULT_STYLE,
    Bools,
    Floats,
    Ints,
    Segment,
    Style,
    UInt8,
    draw_agreement,
    draw_panels,
    draw_segments,
    resize,
    result_segments,
)
from dformer.visualize.arrays import tight_box
from dformer.visualize.files import FORMATS, save_picture


@dataclass(frozen=True)
class Result:
    """Hold what a model has found in an image, for one task. N segments, H, W: size of the image.

    Attributes:
        image: (H, W, 3) RGB.
        predictions: what the model returns, in Detectron2's form (see `Segmenter.forward`).
        task: one of `dformer.postprocess.TASKS`.
        class_names: of the model's classes.
        min_score: instances of a lower score are left out.
        size: height and width of the image as it was given; larger than `image` only where that was made smaller.
        t: time of the noise that it was found at; None without diffusion.
        frame: number in the video, from 0; None for an image.
    """

    image: UInt8 = field(repr=False)
    predictions: dict[str, Any] = field(repr=False)
    task: str
    class_names: Sequence[str] = field(repr=False)
    min_score: float
    size: tuple[int, int]
    t: float | None = None
    frame: int | None = None

    @cached_property
    def segments(self) -> list[Segment]:
        """Return the segments, each with `mask`, `category_id`, `score`, `is_thing` and, in a video, `track`."""
        return result_segments(self.predictions, self.task, self.min_score)

    @property
    def tracks(self) -> list[int | None]:
        """Return of each segment the number of the object in the video, from 1; None for stuff, and of an image."""
        return [segment.track for segment in self.segments]

    @cached_property
    def panoptic(self) -> NDArray[np.int32]:
        """Return a map (H, W) of the segments by number, from 1; 0 where there is none.

        Where instances overlap, it is that of the higher score.
        """
        ids = np.zeros(self.image.shape[:2], np.int32)
        numbered = enumerate(self.segments, start=1)
        for number, segment in sorted(numbered, key=lambda pair: pair[1].score or 0):
            ids[segment.mask] = number
        return ids

    @property
    def agreement(self) -> Floats | None:
        """Return the share (H, W) of answers that agree at each pixel, of `Predictor.ensemble`; else None."""
        return self.predictions.get("agreement")

    @property
    def masks(self) -> Bools:
        """Return the masks (N, H, W)."""
        return np.array([segment.mask for segment in self.segments], bool).reshape(-1, *self.image.shape[:2])

    @property
    def boxes(self) -> Ints:
        """Return the boxes (N, 4) around the masks: left, top, right, bottom; the last two are outside of the mask."""
        sides = [tight_box(segment.mask) or (slice(0, 0), slice(0, 0)) for segment in self.segments]
        return np.array([(x.start, y.start, x.stop, y.stop) for y, x in sides], np.int64).reshape(-1, 4)

    @property
    def scores(self) -> Floats:
        """Return the scores (N,) in [0, 1]; nan in semantic results, which have none."""
        return np.array([np.nan if segment.score is None else segment.score for segment in self.segments], np.float32)

    @property
    def classes(self) -> Ints:
        """Return the class (N,) of each segment, from 0."""
        return np.array([segment.category_id for segment in self.segments], np.int64)

    @property
    def names(self) -> list[str]:
        """Return the name of the class of each segment."""
        return [self.class_names[segment.category_id] for segment in self.segments]

    def draw(self, style: Style = DEFAULT_STYLE) -> UInt8:
        """Draw the segments over the image, and return the picture (H * s, W * s, 3), see `draw_segments`.

        Where several answers were merged, the picture beside it shows where they disagree, see `draw_agreement`.
        """
        picture = draw_segments(self.image, self.segments, self.class_names, style)
        if self.agreement is None:
            return picture
        return draw_panels([picture, draw_agreement(self.image, self.agreement)], ["most answers", "disagreement"])

    def save(self, file: str | Path, style: Style = DEFAULT_STYLE) -> None:
        """Write a picture (.png, .jpg, .webp) or, as .json, height, width and the segments of `to_coco`."""
        file = Path(file)
        if file.suffix.lower() == ".json":
            height, width = self.size
            write_json(file, {"height": height, "width": width, "segments": self.to_coco()})
        elif file.suffix.lower() in FORMATS:
            save_picture(self.draw(style), file)
        else:
            raise UserError(f"{file}: the suffix says what is written; choose one of {', '.join(FORMATS)}, .json")

    def to_coco(self) -> list[dict[str, Any]]:
        """Return a dict a segment, as JSON takes it, with COCO's names and run-length encoding, at the given `size`.

        They are "id" (from 1), "category_id" (from 0), "category", "isthing", "score", "area", "bbox" and
        "segmentation"; in a video also "track_id".
        """
        records = []
        for number, segment in enumerate(self.segments, start=1):
            encoded = encode_mask(resize(segment.mask, self.size))
            records.append(
                {
                    "id": number,
                    "category_id": segment.category_id,
                    "category": self.class_names[segment.category_id],
                    "isthing": segment.is_thing,
                    "score": segment.score,
                    **({} if segment.track is None else {"track_id": segment.track}),
                    **area_and_box(encoded),
                    "segmentation": json_rle(encoded),
                }
            )
        return records

    def _repr_png_(self) -> bytes:
        """Return the picture, as notebooks show it."""
        stream = BytesIO()
        Image.fromarray(self.draw()).save(stream, "PNG")
        return stream.getvalue()


def merge_results(results: Sequence[Result]) -> Result:
    """Merge panoptic results of one image into what most of them agree on, with `agreement`; see `merge_samples`."""
    maps = [(ids.cpu().numpy(), segments) for ids, segments in (each.predictions["panoptic_seg"] for each in results)]
    merged, segments, agreement = merge_samples(maps)
    predictions = {"panoptic_seg": (torch.from_numpy(merged), segments), "agreement": agreement}
    return replace(results[0], predictions=predictions, t=None)
