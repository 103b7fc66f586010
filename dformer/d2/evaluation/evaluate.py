"""A model on the data sets of DATASETS.TEST."""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from torch import nn

from dformer.d2.config import config_text
from dformer.d2.config.device import inference_autocast
from dformer.d2.data import build_test_loader
from dformer.d2.evaluation import build_evaluators, written_whole
from dformer.d2.evaluation.test_time_augmentation import augment

Results = Mapping[str, Mapping[str, Mapping[str, float]]]  # of data sets, tasks and metrics

# What results.json starts with, and where Detectron2's evaluators have it.
HEADLINE = {
    "PQ": ("panoptic_seg", "PQ"),
    "PQ_things": ("panoptic_seg", "PQ_th"),
    "PQ_stuff": ("panoptic_seg", "PQ_st"),
    "AP": ("segm", "AP"),
    "mIoU": ("sem_seg", "mIoU"),
}


def evaluate(cfg: CfgNode, model: nn.Module) -> Results:
    """Run `model` on DATASETS.TEST. Returns, in the main process, the metrics: {data set: {task: {metric: value}}}.

    As a `Predictor` does it: on a GPU in the precision of SOLVER.AMP, with TEST.AUG where enabled. The predictions are
    saved in OUTPUT_DIR/inference/<data set>, with the cfg, whole or not at all.
    """
    results = OrderedDict()
    augmented = augment(cfg, model)
    for name in cfg.DATASETS.TEST:
        folder = Path(cfg.OUTPUT_DIR) / "inference" / name
        with written_whole(folder) as predictions, inference_autocast(cfg):
            evaluators = build_evaluators(cfg, name, predictions)
            results[name] = inference_on_dataset(augmented, build_test_loader(cfg, name), evaluators)
            if comm.is_main_process():
                (predictions / "config.yaml").write_text(config_text(cfg))
    return results


def headline(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The metrics of HEADLINE that are among those of a data set."""
    return {name: metrics[task].get(metric) for name, (task, metric) in HEADLINE.items() if task in metrics}
