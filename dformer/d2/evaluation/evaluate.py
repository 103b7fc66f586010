"""Evaluation of a model on the data sets of DATASETS.TEST, or of predictions on disk without a model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset
from detectron2.utils import comm
from torch import nn

from dformer.d2.config import config_text
from dformer.d2.config.device import inference_autocast
from dformer.d2.data import build_test_loader
from dformer.d2.data.datasets import get_records
from dformer.d2.evaluation.build import build_evaluators, task_evaluators
from dformer.d2.evaluation.test_time_augmentation import augment
from dformer.d2.evaluation.video import Follower
from dformer.utils import groups
from dformer.utils.errors import UserError
from dformer.utils.files import PARTIAL, atomic_folder

Results = Mapping[str, Mapping[str, Mapping[str, float]]]  # data set -> task -> metric -> value

# What results.json starts with, and where Detectron2's evaluators have it.
HEADLINE = {
    "PQ": ("panoptic_seg", "PQ"),
    "PQ_things": ("panoptic_seg", "PQ_th"),
    "PQ_stuff": ("panoptic_seg", "PQ_st"),
    "PQ_agnostic": ("panoptic_seg", "PQ_agnostic"),
    "AP": ("segm", "AP"),
    "mIoU": ("sem_seg", "mIoU"),
    "STQ": ("video", "STQ"),
    "VPQ": ("video", "VPQ"),
    "J&F": ("video", "J&F"),
    "HOTA": ("video", "HOTA"),
    "IDF1": ("video", "IDF1"),
    "track_AP": ("video", "AP"),
}


def evaluate(cfg: CfgNode, model: nn.Module) -> Results:
    """Run `model` on DATASETS.TEST. Return the metrics, in the main process.

    As in a `Predictor`, the model runs in float32 or the precision of TEST.AMP, with TEST.AUG where enabled; on
    videos, TEST.TRACKER follows objects. The predictions are saved with the cfg in OUTPUT_DIR/inference/<data set>,
    whole or not at all.
    """
    results = {}
    augmented = augment(cfg, model)
    for name in cfg.DATASETS.TEST:
        with _shared_folder(Path(cfg.OUTPUT_DIR) / "inference" / name) as folder, inference_autocast(cfg):
            evaluators = build_evaluators(cfg, name, folder)
            is_video = MetadataCatalog.get(name).get("evaluator_type") == "video"
            runner = Follower(cfg, model) if is_video else augmented
            results[name] = inference_on_dataset(runner, build_test_loader(cfg, name), evaluators)
            if comm.is_main_process():
                (folder / "config.yaml").write_text(config_text(cfg))
    return results


def evaluate_saved(cfg: CfgNode, dataset_name: str, root: str | Path) -> dict[str, dict[str, float]]:
    """Evaluate the predictions for a data set in `root`/<data set>. Return the metrics as `build_evaluators` does.

    They are in the formats that the evaluators write, so OUTPUT_DIR/inference of a run serves as `root`, and the
    metrics are those of that run, to the last digit.

    Raises:
        UserError: there are none, they are for other images or data, or are damaged; or as `build_evaluators`.
    """
    folder = Path(root) / dataset_name
    if not folder.is_dir():
        raise UserError(
            f'there are no predictions for data set "{dataset_name}": {folder} is not a folder. '
            "--predictions names the folder that holds one for each data set, such as OUTPUT_DIR/inference of a run"
        )
    evaluators = list(task_evaluators(cfg, dataset_name, folder).values())
    images = get_records(dataset_name)
    for evaluator in evaluators:
        evaluator.process_saved(images)
    return DatasetEvaluators(evaluators).evaluate()


def headline(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Select the metrics of HEADLINE that were evaluated; return them by their names there."""
    return {name: metrics[task][metric] for name, (task, metric) in HEADLINE.items() if metric in metrics.get(task, {})}


@contextmanager
def _shared_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder for all processes to write to; the first one renames it to `folder` once it is complete."""
    with atomic_folder(folder) if comm.is_main_process() else nullcontext():
        groups.wait_for_all()
        yield folder.with_name(f"{PARTIAL}{folder.name}")
        groups.wait_for_all()  # for the first one's metrics
