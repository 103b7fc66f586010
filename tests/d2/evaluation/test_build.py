"""Evaluators that a data set gets, and data sets that get none."""

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from dformer.d2.config import get_cfg
from dformer.d2.evaluation.build import task_evaluators
from dformer.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("empty_catalogs")


def tasks_of(name, folder, tasks=("panoptic", "instance", "semantic")):
    cfg = get_cfg()
    cfg.TEST.TASKS = tasks
    return list(task_evaluators(cfg, name, folder))


def test_tasks_are_chosen(pets, tmp_path):
    assert tasks_of("pets", tmp_path) == ["panoptic", "instance", "semantic"]
    assert tasks_of("pets", tmp_path, ("semantic",)) == ["semantic"]
    (tmp_path / "data" / "instances.json").unlink()
    assert tasks_of("pets", tmp_path) == ["panoptic", "semantic"]


@pytest.mark.parametrize(
    ("evaluator_type", "named"),
    [
        ("cityscapes_instance", "scenes.*cityscapes_instance.*coco_panoptic_seg"),
        ("sem_seg", "scenes.*semantic.*TEST.TASKS.*panoptic"),
    ],
)
def test_nothing_to_evaluate(tmp_path, evaluator_type, named):
    DatasetCatalog.register("scenes", list)
    MetadataCatalog.get("scenes").set(stuff_classes=["sky"], evaluator_type=evaluator_type, ignore_label=255)
    with pytest.raises(UserError, match=named):
        tasks_of("scenes", tmp_path, ("panoptic", "instance"))


@pytest.mark.parametrize(
    "damage",
    [lambda pets: pets.stuff_classes.pop(), lambda pets: pets.stuff_dataset_id_to_contiguous_id.update({20: 0})],
)
def test_things_and_stuff_have_one_numbering(pets, tmp_path, damage):
    damage(MetadataCatalog.get("pets"))
    with pytest.raises(UserError, match="pets.*stuff_dataset_id_to_contiguous_id"):
        tasks_of("pets", tmp_path)
