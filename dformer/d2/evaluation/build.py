"""The evaluators of a data set."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.evaluation import DatasetEvaluators
from detectron2.utils.file_io import PathManager

from dformer.d2.data.datasets import get_metadata, get_records
from dformer.d2.evaluation.evaluator import TaskEvaluator
from dformer.d2.evaluation.instance import InstanceEvaluator
from dformer.d2.evaluation.lvis import LVISEvaluator
from dformer.d2.evaluation.panoptic import PanopticEvaluator, PanopticGroundTruth
from dformer.d2.evaluation.semantic import SemanticEvaluator, prediction_names
from dformer.d2.evaluation.video import VideoEvaluator
from dformer.data.coco_format import instances_json
from dformer.data.images import read_labels, read_panoptic_png
from dformer.data.panoptic import semantic_from_panoptic
from dformer.metrics.semantic import Labels
from dformer.utils.errors import UserError
from dformer.utils.files import read_json
from dformer.utils.processes import parallel_map

logger = logging.getLogger(__name__)


def build_evaluators(cfg: CfgNode, dataset_name: str, folder: str | Path) -> DatasetEvaluators:
    """Build the evaluators of the tasks in `cfg.TEST.TASKS` that the data set annotates; return them for one pass.

    `evaluate` returns {"panoptic_seg": {"PQ", "SQ", "RQ", "PQ_th", ..., "PQ-<class>", ...}, "segm": {"AP", "AP50", ...,
    "AP-<class>"}, "sem_seg": {"mIoU", ..., "IoU-<class>"}}, of videos {"video": {"J&F", "HOTA", ...}}, all
    0..100, nan for what is not annotated; it is empty on processes other than the first. `cfg.TEST.BOUNDARY` and
    `CLASS_AGNOSTIC` add to it. Predictions go to `folder`.

    Raises:
        UserError: the data set is not registered, of an unknown evaluator_type, or annotates none of the tasks.
    """
    return DatasetEvaluators(list(task_evaluators(cfg, dataset_name, folder).values()))


def task_evaluators(cfg: CfgNode, dataset_name: str, folder: str | Path) -> dict[str, TaskEvaluator]:
    """Build the evaluators of a data set as `build_evaluators` does; return them by their tasks."""
    metadata = get_metadata(dataset_name)
    build = BUILDERS.get(metadata.get("evaluator_type"))
    if build is None:
        raise UserError(
            f'data set "{dataset_name}" cannot be evaluated: its evaluator_type is {metadata.get("evaluator_type")!r}, '
            f"not one of {', '.join(BUILDERS)}"
        )
    evaluators = build(cfg, metadata, Path(folder))
    chosen = {task: evaluator for task, evaluator in evaluators.items() if task in cfg.TEST.TASKS}
    if not chosen:
        raise UserError(
            f'there is nothing to evaluate: data set "{dataset_name}" has annotations for {", ".join(evaluators)}, '
            f"and TEST.TASKS is {tuple(cfg.TEST.TASKS)}"
        )
    return chosen


def _with_panoptic_annotations(cfg: CfgNode, metadata: Metadata, folder: Path) -> dict[str, TaskEvaluator]:
    truth = PanopticGroundTruth(_local(metadata.panoptic_json), _local(metadata.panoptic_root))

    def read_truth(image: dict[str, Any]) -> Labels:
        annotation = truth[image["image_id"]]
        segment_ids = read_panoptic_png(truth.png_root / annotation["file_name"])
        return semantic_from_panoptic(segment_ids, annotation["segments_info"], metadata)

    ids = _dataset_ids(metadata)
    class_aware = len(cfg.MODEL.CLASSES) != 1 or len(ids) == 1
    panoptic = PanopticEvaluator(folder, truth, ids, cfg.TEST.CLASS_AGNOSTIC or not class_aware, class_aware)
    evaluators: dict[str, TaskEvaluator] = {"panoptic": panoptic}
    if metadata.get("json_file") and PathManager.isfile(metadata.json_file):
        evaluators |= _with_instance_annotations(cfg, metadata, folder)
    else:
        logger.warning("%s has no instance annotations (%s): no AP", metadata.name, metadata.get("json_file"))
    values = [ids[k] for k in range(len(ids))]
    evaluators["semantic"] = SemanticEvaluator(
        folder, metadata, values, read_truth, lambda i: truth[i["image_id"]]["file_name"], cfg.TEST.BOUNDARY
    )
    return evaluators


def _with_instance_annotations(cfg: CfgNode, metadata: Metadata, folder: Path) -> dict[str, TaskEvaluator]:
    if metadata.get("thing_dataset_id_to_contiguous_id") is None:
        get_records(metadata.name)  # Detectron2 numbers the categories when it loads the annotations
    things = {contiguous: i for i, contiguous in metadata.thing_dataset_id_to_contiguous_id.items()}
    if metadata.get("json_file"):
        json_file = _local(metadata.json_file)
        source, truth = str(json_file), partial(read_json, json_file)
    else:  # annotated in another form
        source, truth = f'data set "{metadata.name}"', partial(_as_coco_instances, metadata)
    return {"instance": InstanceEvaluator(folder, truth, source, things, cfg.TEST.BOUNDARY)}


def _with_lvis_annotations(cfg: CfgNode, metadata: Metadata, folder: Path) -> dict[str, TaskEvaluator]:
    json_file = _local(metadata.json_file)
    ids = {k: k + 1 for k in range(len(metadata.thing_classes))}  # as Detectron2 numbers them
    return {"instance": LVISEvaluator(folder, partial(read_json, json_file), str(json_file), ids)}


def _as_coco_instances(metadata: Metadata) -> dict[str, Any]:
    return instances_json(get_records(metadata.name), metadata, run=partial(parallel_map, workers=1))


def _with_semantic_annotations(cfg: CfgNode, metadata: Metadata, folder: Path) -> dict[str, TaskEvaluator]:
    records = {record["file_name"]: record for record in get_records(metadata.name)}

    def read_truth(image: dict[str, Any]) -> Labels:
        record = records[image["file_name"]]
        return read_labels(record["sem_seg_file_name"], record.get("label_map"))

    names, num_classes = prediction_names(records), len(metadata.stuff_classes)
    if metadata.name.startswith("ade20k_sem_seg"):  # published, and to be submitted, with 0 for void
        label_values = list(range(1, num_classes + 1))
    else:
        dataset_ids = {k: i for i, k in metadata.get("stuff_dataset_id_to_contiguous_id", {}).items()}
        label_values = [dataset_ids.get(k, k) for k in range(num_classes)]
    evaluator = SemanticEvaluator(
        folder, metadata, label_values, read_truth, lambda image: names[image["file_name"]], cfg.TEST.BOUNDARY
    )
    return {"semantic": evaluator}


def _with_videos(cfg: CfgNode, metadata: Metadata, folder: Path) -> dict[str, TaskEvaluator]:
    records = get_records(metadata.name)
    task = next((task for task in ("panoptic", "instance") if task in cfg.TEST.TASKS), "panoptic")
    return {task: VideoEvaluator(folder, metadata, records, task)}


def _local(path: str) -> Path:
    return Path(PathManager.get_local_path(path))


def _dataset_ids(metadata: Metadata) -> dict[int, int]:
    """Return the dataset category id of each contiguous class id, of things and stuff."""
    things = {contiguous: i for i, contiguous in metadata.thing_dataset_id_to_contiguous_id.items()}
    stuff = {contiguous: i for i, contiguous in metadata.stuff_dataset_id_to_contiguous_id.items()}
    ids, num_names = things | stuff, len(metadata.stuff_classes)
    if any(ids[k] != i for k, i in things.items()) or sorted(ids) != list(range(num_names)):
        raise UserError(
            f'data set "{metadata.name}": stuff_classes has {num_names} names, thing_dataset_id_to_contiguous_id '
            f"{len(things)} ids and stuff_dataset_id_to_contiguous_id {len(stuff)}; dformer needs one numbering "
            '(no "separated" data set): stuff_classes names all things, then all stuff, in the order of contiguous ids'
        )
    return ids


# evaluator_type of the metadata -> task: evaluator
BUILDERS = {
    "coco_panoptic_seg": _with_panoptic_annotations,
    "ade20k_panoptic_seg": _with_panoptic_annotations,
    "coco": _with_instance_annotations,
    "lvis": _with_lvis_annotations,
    "sem_seg": _with_semantic_annotations,
    "video": _with_videos,
}
