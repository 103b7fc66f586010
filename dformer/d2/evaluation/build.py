"""Which evaluators a data set gets."""

import logging
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.data.catalog import Metadata
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from dformer.d2.data.coco_format import instances_json
from dformer.d2.data.datasets import get_metadata
from dformer.d2.data.images import read_labels, read_panoptic_png
from dformer.d2.data.panoptic import semantic_from_panoptic
from dformer.d2.evaluation.ground_truth import PanopticGroundTruth
from dformer.d2.evaluation.instance import InstanceEvaluator
from dformer.d2.evaluation.output import write_json
from dformer.d2.evaluation.panoptic import PanopticEvaluator
from dformer.d2.evaluation.semantic import Labels, SemanticEvaluator
from dformer.errors import UserError

logger = logging.getLogger(__name__)


def build_evaluators(cfg: CfgNode, dataset_name: str, output_dir: str | Path) -> DatasetEvaluators:
    """Evaluators of the tasks in `cfg.TEST.TASKS` that the data set annotates, for one pass over it.

    `evaluate` returns {"panoptic_seg": {"PQ", "SQ", "RQ", "PQ_th", ..., "PQ-<class>"}, "segm": {"AP", "AP50", ...,
    "AP-<class>"}, "sem_seg": {"mIoU", ..., "IoU-<class>"}}, all 0..100, nan for what is not annotated; it is empty on
    processes other than the first. Predictions are written to `output_dir` (see the evaluators).

    Raises:
        UserError: the data set is not registered, is of a kind that dformer cannot evaluate, or annotates none of the
            tasks.
    """
    metadata = get_metadata(dataset_name)
    build = BUILDERS.get(metadata.get("evaluator_type"))
    if build is None:
        raise UserError(
            f'data set "{dataset_name}" cannot be evaluated: its evaluator_type is {metadata.get("evaluator_type")!r}, '
            f"not one of {', '.join(BUILDERS)}"
        )
    evaluators = build(metadata, Path(output_dir))
    chosen = [evaluator for task, evaluator in evaluators.items() if task in cfg.TEST.TASKS]
    if not chosen:
        raise UserError(
            f'there is nothing to evaluate: data set "{dataset_name}" has annotations for {", ".join(evaluators)}, '
            f"and TEST.TASKS is {tuple(cfg.TEST.TASKS)}"
        )
    return DatasetEvaluators(chosen)


def _with_panoptic_annotations(metadata: Metadata, folder: Path) -> dict[str, DatasetEvaluator]:
    truth = PanopticGroundTruth(_local(metadata.panoptic_json), _local(metadata.panoptic_root))

    def labels_of(image: dict[str, Any]) -> Labels:
        annotation = truth[image["image_id"]]
        picture = read_panoptic_png(truth.png_file(annotation))
        return semantic_from_panoptic(picture, annotation["segments_info"], metadata)

    evaluators: dict[str, DatasetEvaluator] = {"panoptic": PanopticEvaluator(truth, _dataset_ids(metadata), folder)}
    if metadata.get("json_file") and PathManager.isfile(metadata.json_file):
        evaluators |= _with_instance_annotations(metadata, folder)
    else:
        logger.warning("%s: no instance annotations (%s), AP is left out", metadata.name, metadata.get("json_file"))
    evaluators["semantic"] = SemanticEvaluator(labels_of, metadata.stuff_classes, metadata.ignore_label, folder)
    return evaluators


def _with_instance_annotations(metadata: Metadata, folder: Path) -> dict[str, DatasetEvaluator]:
    if metadata.get("thing_dataset_id_to_contiguous_id") is None:
        DatasetCatalog.get(metadata.name)  # Detectron2 numbers the categories when it loads the annotations
    things = {contiguous: i for i, contiguous in metadata.thing_dataset_id_to_contiguous_id.items()}
    if metadata.get("json_file"):
        json_file = _local(metadata.json_file)
    else:  # annotated in another form
        json_file = folder / "annotations.json"
        if comm.is_main_process():
            write_json(json_file, instances_json(DatasetCatalog.get(metadata.name), metadata))
    return {"instance": InstanceEvaluator(json_file, things, folder)}


def _with_semantic_annotations(metadata: Metadata, folder: Path) -> dict[str, DatasetEvaluator]:
    records = {record["file_name"]: record for record in DatasetCatalog.get(metadata.name)}

    def labels_of(image: dict[str, Any]) -> Labels:
        record = records[image["file_name"]]
        return read_labels(record["sem_seg_file_name"], record.get("label_map"))

    return {"semantic": SemanticEvaluator(labels_of, metadata.stuff_classes, metadata.ignore_label, folder)}


def _local(path: str) -> Path:
    return Path(PathManager.get_local_path(path))


def _dataset_ids(metadata: Metadata) -> dict[int, int]:
    """Contiguous class id -> dataset category id, of things and stuff."""
    things = {contiguous: i for i, contiguous in metadata.thing_dataset_id_to_contiguous_id.items()}
    stuff = {contiguous: i for i, contiguous in metadata.stuff_dataset_id_to_contiguous_id.items()}
    if any(things.get(contiguous, i) != i for contiguous, i in stuff.items()):
        raise UserError(
            f'things and stuff of data set "{metadata.name}" share class ids, as in the "separated" data sets of '
            "Detectron2; dformer needs the standard form, where ids run over things, then stuff"
        )
    return things | stuff


# evaluator_type of the metadata -> task: evaluator
BUILDERS = {
    "coco_panoptic_seg": _with_panoptic_annotations,
    "ade20k_panoptic_seg": _with_panoptic_annotations,
    "coco": _with_instance_annotations,
    "sem_seg": _with_semantic_annotations,
}
