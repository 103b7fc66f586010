"""Checks of the data sets that a config names, before anything heavy starts."""

import fnmatch
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from dformer.d2.config.diffusioninst import num_objects
from dformer.d2.data.custom import register_custom
from dformer.d2.data.datasets import available_tasks, class_names, has_classes, num_classes
from dformer.d2.data.inspection import inspect_datasets
from dformer.data.checks.findings import WARNING
from dformer.data.forms import folder_of
from dformer.data.prepare import default_root
from dformer.utils.errors import UserError
from dformer.utils.processes import available_cores

MAX_SHOWN = 10  # fatal findings
MAX_WORKERS = 8  # a few images each; more would take longer to start
# What writes a missing file or folder, by a pattern of a part of its path.
SCRIPTS = {
    "shapes": "shapes.py",
    "moving_shapes": "moving_shapes.py",
    "moving_shapes_train": "moving_shapes.py --name moving_shapes_train --seed 1 --clips 400",
    "shapes_small": "shapes.py --small --size 256",
    "annotations_detectron2": "prepare_ade20k_sem_seg.py",
    "ade20k_panoptic_*": "prepare_ade20k_pan_seg.py",
    "ade20k_instance_*": "prepare_ade20k_ins_seg.py",
}


def check_datasets(cfg: CfgNode, train: bool = True, test: bool = True) -> list[str]:
    """Check names, files, contents and classes of `cfg.DATASETS.TRAIN` (if `train`) and `TEST` (if `test`).

    Their json files are checked (the instances of a panoptic set only where mask AP is measured), and
    `cfg.DATASETS.CHECK_IMAGES` images with their annotations.

    Returns:
        Warnings, a line each, of what keeps no training from starting but is hardly meant.

    Raises:
        UserError: a declaration in `cfg.DATASETS.CUSTOM` is wrong, or a data set is not registered, is not annotated
            for `cfg.INPUT.TASK`, lacks files, has a fatal fault, or has other classes than `cfg.MODEL.NUM_CLASSES` and
            `cfg.MODEL.CLASSES` or than the first data set.
    """
    register_custom(cfg)
    training = list(cfg.DATASETS.TRAIN) if train else []
    testing = list(cfg.DATASETS.TEST) if test else []
    if train and not training:
        raise UserError("DATASETS.TRAIN is empty; name at least one data set to train on")
    # Before files are read: what is known without.
    _check_classes(cfg, [n for n in training if has_classes(n)], [n for n in testing if has_classes(n)])
    for name in (*training, *testing):
        _check_files(name, instances=name in testing and "instance" in cfg.TEST.TASKS)
    warnings = _check_contents(cfg, training, testing)
    _check_classes(cfg, training, testing)
    return warnings


def _check_contents(cfg: CfgNode, training: Sequence[str], testing: Sequence[str]) -> list[str]:
    limit, queries = cfg.DATASETS.CHECK_IMAGES, num_objects(cfg)
    inspections = []
    if limit:
        workers = min(MAX_WORKERS, len(available_cores()))
        instances = testing if "instance" in cfg.TEST.TASKS else ()
        inspections = inspect_datasets(training, testing, queries, limit, False, workers, instances)
    if fatal := [finding for inspection in inspections for finding in inspection.fatal]:
        shown = "".join(f"\n  {f.file}: {f.what}; {f.remedy}" for f in fatal[:MAX_SHOWN])
        more = f"\n  and {len(fatal) - MAX_SHOWN} more" if len(fatal) > MAX_SHOWN else ""
        raise UserError(
            f"the data cannot be trained on:{shown}{more}\nFor all faults, run: "
            f"dformer check {' '.join(i.name for i in inspections)} (with the same DATASETS.CUSTOM)"
        )
    return [
        f"{inspection.name}: {first.kind} ({1 + len(others)}): {first.file}: {first.what}; {first.remedy}"
        for inspection in inspections
        for first, *others in inspection.groups()
        if first.level == WARNING
    ]


def _check_classes(cfg: CfgNode, training: Sequence[str], testing: Sequence[str]) -> None:
    expected, origin, task = cfg.MODEL.NUM_CLASSES, "MODEL.NUM_CLASSES", cfg.INPUT.TASK
    # A test set may be annotated for less than what the model is trained for, or have videos whose objects are of one
    # class, as DAVIS: its classes are the evaluator's matter.
    for name in (*training, *(n for n in testing if task in available_tasks(n) and not is_class_agnostic(n))):
        count = num_classes(name, task)
        if not expected:
            expected, origin = count, f'data set "{name}"'
        if count != expected:
            raise UserError(
                f'data set "{name}" has {count} classes for {task} segmentation, but {origin} says {expected}; set '
                "MODEL.NUM_CLASSES to 0 to take it from the data set, or name another data set"
            )
        # A model of one class is class-agnostic.
        if len(cfg.MODEL.CLASSES) > 1 and class_names(name, task) != list(cfg.MODEL.CLASSES):
            raise UserError(
                f'MODEL.CLASSES is {", ".join(cfg.MODEL.CLASSES[:3])}, ..., but the classes of data set "{name}" are '
                f"{', '.join(class_names(name, task)[:3])}, ...; this config is of a run on other data: override with "
                'MODEL.CLASSES "()", MODEL.THINGS "()"'
            )


def is_class_agnostic(name: str) -> bool:
    """Tell whether a data set has videos whose objects all are of one class."""
    metadata = MetadataCatalog.get(name)
    return metadata.get("evaluator_type") == "video" and len(metadata.thing_classes) == 1


def _check_files(name: str, instances: bool) -> None:
    """Check that a data set's files and folders exist; a panoptic set's instances json only if `instances`."""
    missing = [path.absolute() for path in _paths(name, instances) if not _has_content(path)]
    if missing:
        scripts = {s for pattern, s in SCRIPTS.items() for path in missing if fnmatch.filter(path.parts, pattern)}
        remedies = "".join(f"To write them: python datasets/{script}. " for script in sorted(scripts))
        raise UserError(
            f'data set "{name}" is not complete: missing or empty: {", ".join(map(str, missing))}. {remedies}'
            f"The folder of all data sets is DETECTRON2_DATASETS, {Path(default_root()).absolute()}; "
            "datasets/README.md lists their files"
        )


def _paths(name: str, instances: bool) -> list[Path]:
    metadata = MetadataCatalog.get(name)
    if metadata.get("declared"):
        source = metadata.declared[0]
        places = (folder_of(source.images), folder_of(source.annotations), source.pngs, source.instances)
        return [place for place in places if place]
    wanted = ["image_root", "json_file", "sem_seg_root"]
    if has_classes(name) and "panoptic" in available_tasks(name):  # all else follows from the panoptic annotations
        wanted = ["image_root", "panoptic_json", "panoptic_root", *(["json_file"] if instances else [])]
    return [Path(metadata.get(key)) for key in wanted if metadata.get(key) and "://" not in metadata.get(key)]


def _has_content(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.is_file()
