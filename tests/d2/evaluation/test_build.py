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


def test_no_instances_without_a_json(pets, tmp_path):
    (tmp_path / "data" / "instances.json").unlink()
    assert tasks_of("pets", tmp_path) == ["panoptic", "semantic"]


def test_unknown_evaluator_type(tmp_path):
    DatasetCatalog.register("cars", list)
    MetadataCatalog.get("cars").set(thing_classes=["car"], evaluator_type="cityscapes_instance")
    with pytest.raises(UserError, match="cars.*cityscapes_instance.*coco_panoptic_seg"):
        tasks_of("cars", tmp_path)


def test_nothing_to_evaluate(tmp_path):
    DatasetCatalog.register("scenes", list)
    MetadataCatalog.get("scenes").set(stuff_classes=["sky"], evaluator_type="sem_seg", ignore_label=255)
    with pytest.raises(UserError, match="scenes.*semantic.*TEST.TASKS.*panoptic"):
        tasks_of("scenes", tmp_path, ("panoptic", "instance"))


@pytest.mark.parametrize(
    "damage",
    [lambda pets: pets.stuff_classes.pop(), lambda pets: pets.stuff_dataset_id_to_contiguous_id.update({20: 0})],
)
def test_things_and_stuff_have_one_numbering(pets, tmp_path, damage):
    damage(MetadataCatalog.get("pets"))
    with pytest.raises(UserError, match="pets.*stuff_dataset_id_to_contiguous_id"):
        tasks_of("pets", tmp_path)
