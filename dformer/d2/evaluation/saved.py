"""Evaluation without a model, of predictions on disk."""

from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from dformer.d2.data.datasets import loading
from dformer.d2.evaluation.build import build_evaluators
from dformer.utils.errors import UserError


def evaluate_saved(cfg: CfgNode, dataset_name: str, root: str | Path) -> dict[str, dict[str, float]]:
    """Results, as of `build_evaluators`, of the predictions for a data set in `root`/<data set>.

    They are in the formats that the evaluators write, so OUTPUT_DIR/inference of a run serves as `root`. The results
    are those of that run, to the last digit.

    Raises:
        UserError: there are none, they are for other images or data, or are damaged; or as `build_evaluators`.
    """
    folder = Path(root) / dataset_name
    if not folder.is_dir():
        raise UserError(
            f'there are no predictions for data set "{dataset_name}": {folder} is not a folder. '
            "--predictions names the folder that holds one for each data set, such as OUTPUT_DIR/inference of a run"
        )
    evaluators = build_evaluators(cfg, dataset_name, folder)
    with loading(dataset_name):
        images = DatasetCatalog.get(dataset_name)
    evaluators.reset()
    for evaluator in evaluators._evaluators:
        evaluator.process_saved(images)
    return evaluators.evaluate()
