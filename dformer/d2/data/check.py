"""Quick checks of the data sets that a config names, before anything heavy starts."""

import fnmatch
import logging
import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager

from dformer.d2.data.custom import register_custom
from dformer.d2.data.datasets import available_tasks, class_names, has_classes, num_classes
from dformer.d2.data.inspection import inspect_datasets
from dformer.data.checks.findings import WARNING
from dformer.data.forms import folder_of
from dformer.utils.errors import UserError

logger = logging.getLogger(__name__)

MAX_SHOWN = 10  # fatal findings
# What to do when a path is missing, by a pattern of a file or folder in it.
_REMEDIES = {
    "shapes": "generate Shapes with: python datasets/shapes.py",
    "annotations_detectron2": "prepare ADE20K with: python datasets/prepare_ade20k_sem_seg.py",
    "ade20k_panoptic_*": "prepare ADE20K with: python datasets/prepare_ade20k_pan_seg.py",
    "ade20k_instance_*": "prepare ADE20K with: python datasets/prepare_ade20k_ins_seg.py",
}


def check_datasets(cfg: CfgNode, train: bool = True, test: bool = True) -> None:
    """Check names, files, class counts and contents of `cfg.DATASETS.TRAIN` (if `train`) and `TEST` (if `test`).

    Of the contents, all that json files say is checked, and `cfg.DATASETS.CHECK_IMAGES` images with their annotations;
    what does not keep a training from starting is logged.

    Raises:
        UserError: a declaration in `cfg.DATASETS.CUSTOM` is wrong, or a data set is not registered (the nearest name is
            given), is not annotated for `cfg.INPUT.TASK`, lacks files (which, where they are expected, and what
            DETECTRON2_DATASETS is), has a fatal fault, or has another number of classes than `cfg.MODEL.NUM_CLASSES`
            (0: derived) or than the first data set.
    """
    register_custom(cfg)
    training = list(cfg.DATASETS.TRAIN) if train else []
    testing = list(cfg.DATASETS.TEST) if test else []
    if train and not training:
        raise UserError("DATASETS.TRAIN is empty; name at least one data set to train on")
    names = [*training, *testing]
    # Before files are read: what can be told without.
    _check_classes(cfg, [n for n in training if has_classes(n)], [n for n in testing if has_classes(n)])
    for name in names:
        _check_files(name, instances=name in testing and "instance" in cfg.TEST.TASKS)
    _check_contents(cfg, training, testing)
    _check_classes(cfg, training, testing)


def _check_classes(cfg: CfgNode, training: Sequence[str], testing: Sequence[str]) -> None:
    # A test set may be annotated for less than what the model is trained for: its classes are the evaluator's matter.
    check_class_counts(cfg, [*training, *(n for n in testing if cfg.INPUT.TASK in available_tasks(n))])


def _check_contents(cfg: CfgNode, training: Sequence[str], testing: Sequence[str]) -> None:
    limit = cfg.DATASETS.CHECK_IMAGES
    if not limit or not [*training, *testing]:
        return
    queries = cfg.MODEL.MASK_DECODER.NUM_QUERIES
    inspections = inspect_datasets(training, testing, queries, limit, progress=False)
    fatal = [finding for inspection in inspections for finding in inspection.fatal]
    if fatal:
        shown = "".join(f"\n  {f.file}: {f.what}; {f.remedy}" for f in fatal[:MAX_SHOWN])
        more = f"\n  and {len(fatal) - MAX_SHOWN} more" if len(fatal) > MAX_SHOWN else ""
        raise UserError(
            f"the data cannot be trained on:{shown}{more}\nAll that is wrong with it is found by: "
            f"python tools/check_dataset.py {' '.join(i.name for i in inspections)} (with the same DATASETS.CUSTOM)"
        )
    for inspection in inspections:
        for kind, findings in inspection.by_kind(WARNING).items():
            first = findings[0]
            logger.warning(
                "%s: %s (%d): %s: %s; %s", inspection.name, kind, len(findings), first.file, first.what, first.remedy
            )


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
    paths = [path for path in _paths(name, instances) if "://" not in path]
    missing = [os.path.abspath(path) for path in paths if not _holds_something(path)]
    if not missing:
        return

    root = os.environ.get("DETECTRON2_DATASETS")
    where = (
        f'it is "{root}"' if root else f'it is not set, so "datasets" in the current folder, {os.getcwd()}, is taken'
    )
    remedies = [text for part, text in _REMEDIES.items() if any(fnmatch.filter(p.split(os.sep), part) for p in missing)]
    raise UserError(
        f'data set "{name}" is not complete: missing or empty: {", ".join(missing)}. '
        f"The environment variable DETECTRON2_DATASETS says where data sets are: {where}. "
        + "".join(f"You can {text}. " for text in remedies)
        + "The expected files: datasets/README.md"
    )


def _paths(name: str, instances: bool) -> list[str]:
    metadata = MetadataCatalog.get(name)
    if metadata.get("declared"):
        source = metadata.declared[0]
        places = (folder_of(source.images), folder_of(source.annotations), source.pngs, source.instances)
        return [str(place) for place in places if place]
    if has_classes(name) and "panoptic" in available_tasks(name):  # all else follows from the panoptic annotations
        wanted = ["image_root", "panoptic_json", "panoptic_root", *(["json_file"] if instances else [])]
    else:
        wanted = ["image_root", "json_file", "sem_seg_root"]
    return [str(metadata.get(key)) for key in wanted if metadata.get(key)]


def _holds_something(path: str) -> bool:
    return bool(PathManager.ls(path)) if PathManager.isdir(path) else PathManager.isfile(path)
