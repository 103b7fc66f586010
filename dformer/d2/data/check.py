"""Quick checks of the data sets that a config names, before anything heavy starts."""

import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from dformer.d2.data.datasets import available_tasks, class_names, get_metadata, num_classes
from dformer.errors import UserError

# What to do when a path with this part is missing.
_REMEDIES = {
    "shapes": "generate Shapes with: python datasets/shapes.py",
    "annotations_detectron2": "prepare ADE20K with: python datasets/prepare_ade20k_sem_seg.py",
}


def check_datasets(cfg: CfgNode, train: bool = True, test: bool = True) -> None:
    """Check names, files and class counts of `cfg.DATASETS.TRAIN` (if `train`) and `cfg.DATASETS.TEST` (if `test`).

    Raises:
        UserError: a data set is not registered (the nearest name is given), is not annotated for `cfg.INPUT.TASK`,
            lacks files (which, where they are expected, and what DETECTRON2_DATASETS is), or has another number of
            classes than `cfg.MODEL.NUM_CLASSES` (0: derived) or than the first data set.
    """
    training = list(cfg.DATASETS.TRAIN) if train else []
    testing = list(cfg.DATASETS.TEST) if test else []
    if train and not training:
        raise UserError("DATASETS.TRAIN is empty; name at least one data set to train on")
    # A test set may be annotated for less than what the model is trained for: its classes are the evaluator's matter.
    check_class_counts(cfg, [*training, *(n for n in testing if cfg.INPUT.TASK in available_tasks(n))])
    for name in training:
        _check_files(name)
    for name in testing:
        _check_files(name, instances="instance" in cfg.TEST.TASKS)


def check_class_counts(cfg: CfgNode, names: Sequence[str]) -> None:
    """Check that the data sets have `cfg.MODEL.NUM_CLASSES` classes or, where that is 0, as many as the first; and that
    these are `cfg.MODEL.CLASSES`, where that says which.

    Raises:
        UserError: as `check_datasets`, but for files.
    """
    expected, origin = cfg.MODEL.NUM_CLASSES, "MODEL.NUM_CLASSES"
    for name in names:
        count = num_classes(name, cfg.INPUT.TASK)
        if not expected:
            expected, origin = count, f'data set "{name}"'
        elif count != expected:
            has = f"is {expected}" if origin == "MODEL.NUM_CLASSES" else f"has {expected} classes"
            raise UserError(
                f'{origin} {has}, but data set "{name}" has {count} classes for {cfg.INPUT.TASK} segmentation; '
                "set MODEL.NUM_CLASSES to 0 to take it from the data set, or name another data set"
            )
        if cfg.MODEL.CLASSES and class_names(name, cfg.INPUT.TASK) != list(cfg.MODEL.CLASSES):
            raise UserError(
                f'MODEL.CLASSES is {", ".join(cfg.MODEL.CLASSES[:3])}, ..., but the classes of data set "{name}" are '
                f"{', '.join(class_names(name, cfg.INPUT.TASK)[:3])}, ...; this config is of a run on other data: "
                'override with MODEL.CLASSES "()", MODEL.THINGS "()"'
            )


def _check_files(name: str, instances: bool = False) -> None:
    """Check that a data set's files and folders are there; a panoptic set's instances json only if `instances`."""
    metadata = get_metadata(name)
    if "panoptic" in available_tasks(name):  # all else follows from the panoptic annotations
        wanted = ["image_root", "panoptic_json", "panoptic_root", *(["json_file"] if instances else [])]
    else:
        wanted = ["image_root", "json_file", "sem_seg_root"]
    paths = [str(metadata.get(key)) for key in wanted if metadata.get(key)]
    missing = [os.path.abspath(path) for path in paths if "://" not in path and not _holds_something(path)]
    if not missing:
        return

    root = os.environ.get("DETECTRON2_DATASETS")
    where = (
        f'it is "{root}"' if root else f'it is not set, so "datasets" in the current folder, {os.getcwd()}, is taken'
    )
    remedies = [text for part, text in _REMEDIES.items() if any(part in path.split(os.sep) for path in missing)]
    raise UserError(
        f'data set "{name}" is not complete: missing or empty: {", ".join(missing)}. '
        f"The environment variable DETECTRON2_DATASETS says where data sets are: {where}. "
        + "".join(f"You can {text}. " for text in remedies)
        + "The expected files: datasets/README.md"
    )


def _holds_something(path: str) -> bool:
    return bool(PathManager.ls(path)) if PathManager.isdir(path) else PathManager.isfile(path)
