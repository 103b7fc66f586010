"""What all forms share: where a declared data set is, files paired by name, and records in Detectron2's format."""

import logging
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dformer.data.types import Size
from dformer.utils.errors import UserError

logger = logging.getLogger(__name__)

Annotated = tuple[list[dict[str, Any]], dict[str, Any]]  # records, metadata
Objects = list[dict[str, Any]]  # of an image, in Detectron2's format
Read = Callable[["Source"], Annotated]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
IGNORE_LABEL = 255
XYWH_ABS = 1  # Detectron2's `BoxMode` of boxes as x, y, width, height


@dataclass(frozen=True)
class Source:
    """Say where the images and annotations of a declared data set are.

    Attributes:
        form: a key of `FORMS`.
        images: folder, or pattern `folder/*_image.jpg`, where * is the name that image and annotation share.
        annotations: a json file, or a folder or pattern, depending on the form.
        pngs: coco_panoptic, vipseg: folder of the PNGs of segment ids.
        instances: coco_panoptic: the same things as COCO instances json, for mask AP; None: made from the PNGs.
        classes: value in the annotation -> class name; several values may have the same name. None: from the data.
        table: instance_ids of several classes: a csv file with the columns image, id and class.
        void: values of pixels that are not annotated. None: 255, unless it is a class.
        things: kitti_step: names of the classes whose objects have ids.
    """

    form: str
    images: Path
    annotations: Path
    pngs: Path | None = None
    instances: Path | None = None
    table: Path | None = None
    classes: Mapping[int, str] | None = None
    void: tuple[int, ...] | None = None
    things: tuple[str, ...] = ()

    @property
    def void_values(self) -> set[int]:
        """Return the values that are void, declared or by default."""
        return {IGNORE_LABEL} - (self.classes or {}).keys() if self.void is None else set(self.void)


class Form(NamedTuple):
    """Describe a form; `required` and `optional` are its keys beside form, images, annotations and split."""

    read: Callable[[Source], Annotated]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = ()  # of annotation files that are paired with images
    file_may_be_missing: bool = False  # an image without an annotation file has no objects
    file_of_object: bool = False  # each object has a file, in a folder of the image's name


FORMS: dict[str, Form] = {}


def register_form(name: str, **described: Any) -> Callable[[Read], Read]:
    """Return a decorator that puts a reader into `FORMS`; `described`: fields of `Form`."""

    def register(read: Read) -> Read:
        FORMS[name] = Form(read, **described)
        return read

    return register


def class_metadata(categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a panoptic data set's metadata of classes, from its COCO categories in the order of contiguous ids."""
    names = [c["name"] for c in categories]  # in both lists, as in Detectron2: the id maps tell things from stuff
    return {
        "thing_classes": names,
        "stuff_classes": names,
        "thing_dataset_id_to_contiguous_id": {c["id"]: k for k, c in enumerate(categories) if c["isthing"]},
        "stuff_dataset_id_to_contiguous_id": {c["id"]: k for k, c in enumerate(categories) if not c["isthing"]},
    }


def folder_of(path: Path) -> Path:
    """Return the folder of a pattern `folder/*_mask.png`, and any other path unchanged."""
    return path.parent if "*" in path.name else path


def _files_by_name(path: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Files below a folder by their path in it, without suffix; or of a pattern, by what its `*` matches."""
    before, star, after = path.name.partition("*")
    folder = folder_of(path)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    if star:
        found = sorted(folder.glob(path.name))
        return {file.name[len(before) : len(file.name) - len(after)]: file for file in found}
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in suffixes)
    return {str(file.relative_to(folder).with_suffix("")): file for file in found}


def pair_files(source: Source) -> tuple[dict[str, Any], list[Path], list[Path]]:
    """Match images and annotations by name; return the pairs, and the images and annotations without the other.

    An annotation is None where the form takes this for an image without objects.
    """
    form = FORMS[source.form]
    images = _files_by_name(source.images, IMAGE_SUFFIXES)
    annotations: dict[str, Any] = _files_by_name(source.annotations, form.suffixes)
    if form.file_of_object:
        annotations = _by_folder(annotations, images)
    pairs = {n: (f, annotations.get(n)) for n, f in images.items() if n in annotations or form.file_may_be_missing}
    without_annotation = [file for name, file in images.items() if name not in pairs]
    return pairs, without_annotation, [file for name, file in annotations.items() if name not in images]


def _by_folder(files: Mapping[str, Path], images: Container[str]) -> dict[str, list[Path] | Path]:
    """Files of the folder, or of folders in it, that has an image's name; others by their own."""
    found: dict[str, Any] = {}
    for name, file in files.items():
        image = next((str(folder) for folder in Path(name).parents if str(folder) in images), None)
        if image is None:
            found[name] = file
        else:
            found.setdefault(image, []).append(file)
    return found


def paired_files(source: Source) -> dict[str, Any]:
    """Return the pairs of `pair_files`, at least one with an annotation; files that are not used are told."""
    pairs, without_annotation, without_image = pair_files(source)
    if not any(annotation for _, annotation in pairs.values()):
        raise UserError(
            f"no image in {source.images} has an annotation of its name in {source.annotations}; where names differ by "
            "an ending, give a pattern such as masks/*_mask.png"
        )
    if unused := len(without_annotation) + len(without_image):
        logger.warning("%s: %d files are not used, as image or annotation is missing", source.annotations, unused)
    return pairs


def thing_metadata(names: list[str], source: Source, ids: Sequence[int] | None = None) -> dict[str, Any]:
    """Return the metadata of a data set of things, with category ids from 1 unless `ids` has them."""
    return {
        "thing_classes": names,
        "thing_dataset_id_to_contiguous_id": {i: k for k, i in enumerate(ids or range(1, len(names) + 1))},
        "image_root": str(folder_of(source.images)),
        "annotation_root": str(folder_of(source.annotations)),
        "evaluator_type": "coco",
    }


def image_record(file: Path, image_id: Any, size: Size, **annotation: Any) -> dict[str, Any]:
    """Return the record of an image in Detectron2's format."""
    return {"file_name": str(file), "image_id": image_id, "height": size[0], "width": size[1], **annotation}


def paired_records(
    pairs: Mapping[str, tuple[Path, Path]], annotated: Sequence[tuple[Size, Objects]]
) -> list[dict[str, Any]]:
    """Return the records of paired files, with the size and the objects of each."""
    found = zip(pairs.items(), annotated, strict=True)
    return [image_record(image, name, size, annotations=objects) for (name, (image, _)), (size, objects) in found]


def polygon_object(cls: int, polygons: list[list[float]]) -> dict[str, Any]:
    """Return an object of polygons [x0, y0, x1, y1, ...]."""
    points = np.concatenate([np.reshape(p, (-1, 2)) for p in polygons])
    return annotated_object(cls, polygons, [*points.min(0).tolist(), *np.ptp(points, axis=0).tolist()])


def annotated_object(cls: int, segmentation: Any, box: list[float]) -> dict[str, Any]:
    """Return an object with a mask and its box (x, y, width, height)."""
    return {"category_id": cls, "segmentation": segmentation, "iscrowd": 0, "bbox": box, "bbox_mode": XYWH_ABS}
