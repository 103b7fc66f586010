"""Data sets by name: registration of Shapes and ADE20K, and what metadata say about classes and tasks.

Detectron2's own names (`coco_2017_train_panoptic`, `coco_2017_train`, `ade20k_sem_seg_train`, ...) are used as they
are. The folder of all data sets is the environment variable DETECTRON2_DATASETS, by default "datasets".
"""

import os
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.data.datasets import register_coco_panoptic

from dformer.d2.data.ade20k import register_ade20k
from dformer.d2.data.custom import register_custom, register_declarations
from dformer.data.forms import class_metadata
from dformer.data.prepare import default_root
from dformer.postprocess import TASKS
from dformer.utils.errors import UserError, did_you_mean
from dformer.utils.files import read_json
from dformer.utils.memory import gc_paused

Records = list[dict[str, Any]]


def register_shapes(root: str | Path, prefix: str = "shapes", folder_name: str = "shapes") -> None:
    """Register `<prefix>_train` and `<prefix>_val`: what `dformer shapes` has written or will write to `root`.

    `folder_name` is "shapes_small" for its many small things.
    """
    metadata = class_metadata(read_json(Path(str(files("dformer.data") / "shapes_categories.json"))))
    folder = os.path.join(root, folder_name)
    for split in ("train", "val"):
        register_coco_panoptic(
            f"{prefix}_{split}",
            metadata,
            os.path.join(folder, split),
            os.path.join(folder, f"panoptic_{split}"),
            os.path.join(folder, "annotations", f"panoptic_{split}.json"),
            os.path.join(folder, "annotations", f"instances_{split}.json"),
        )
        MetadataCatalog.get(f"{prefix}_{split}").sem_seg_root = os.path.join(folder, f"semantic_{split}")


def register_moving_shapes(root: str | Path) -> None:
    """Register `moving_shapes` and `moving_shapes_train`: what `datasets/moving_shapes.py` will write to `root`."""
    categories = read_json(Path(str(files("dformer.data") / "shapes_categories.json")))
    classes = {k: category["name"] for k, category in enumerate(categories)}
    things = [category["name"] for category in categories if category["isthing"]]
    for name in ("moving_shapes", "moving_shapes_train"):
        places = {"images": f"{name}/JPEGImages", "annotations": f"{name}/Panoptic"}
        declaration = {"form": "kitti_step", **places, "classes": classes, "things": things}
        register_declarations({name: declaration}, Path(root))
        metadata = MetadataCatalog.get(name)  # known before there are files
        metadata.set(**class_metadata([{**c, "id": k} for k, c in enumerate(categories)]))
        metadata.panoptic_root = str(metadata.declared[0].annotations)


def register_youtube_vis(root: str | Path) -> None:
    """Register `ytvis_<year>_<split>`, as Mask2Former-VIS names them: YouTube-VIS 2019 and 2021 below `root`."""
    for year in (2019, 2021):
        for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
            places = {"images": f"ytvis_{year}/{folder}/JPEGImages", "annotations": f"ytvis_{year}/{folder}.json"}
            register_declarations({f"ytvis_{year}_{split}": {"form": "youtube_vis", **places}}, Path(root))


# What Detectron2's loaders, which trust the files, raise on wrong ones.
BAD_FILE = (
    AssertionError,
    AttributeError,
    LookupError,
    ArithmeticError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)


def get_metadata(name: str) -> Metadata:
    """Return the metadata of a registered data set, with its classes.

    Raises:
        UserError: there is none of this name, or it cannot be loaded.
    """
    if not has_classes(name):
        get_records(name)  # Detectron2 takes the classes of instance sets from their json when it is loaded
    return MetadataCatalog.get(name)


def get_records(name: str, load: Callable[[str], Records] = DatasetCatalog.get) -> Records:
    """Return the records of a registered data set, as `load` returns them.

    Raises:
        UserError: there is none of this name, or it cannot be loaded.
    """
    has_classes(name)  # raises for an unknown name
    try:
        with gc_paused():
            return load(name)
    except UserError:
        raise
    except ImportError as error:  # a data set of Detectron2's that is read by a package of its own: LVIS, Cityscapes
        raise UserError(f'data set "{name}" needs the package "{error.name}": pip install {error.name}') from error
    except BAD_FILE as error:
        raise UserError(f'data set "{name}" cannot be loaded: {type(error).__name__}: {error}') from error


def has_classes(name: str) -> bool:
    """Tell whether the classes of a data set are known without loading it.

    Raises:
        UserError: there is none of this name.
    """
    if name not in DatasetCatalog:
        raise UserError(f'there is no data set "{name}"{did_you_mean(name, DatasetCatalog)}')
    return bool({"thing_classes", "stuff_classes"} & set(MetadataCatalog.get(name).as_dict()))


def available_tasks(name: str) -> tuple[str, ...]:
    """Return the tasks, of "panoptic", "instance" and "semantic", for which the data set is annotated."""
    metadata = get_metadata(name)
    things = metadata.get("thing_dataset_id_to_contiguous_id", {}).values()
    stuff = metadata.get("stuff_dataset_id_to_contiguous_id", {}).values()
    # In Detectron2's "separated" panoptic sets things and stuff are numbered apart: two annotations, not one.
    panoptic = bool(metadata.get("panoptic_root")) and set(things).isdisjoint(stuff)
    # Instance classes are 0 .. K-1, so in a panoptic set things have to come first.
    instance = bool(metadata.get("thing_classes")) and not (panoptic and sorted(things) != list(range(len(things))))
    semantic = panoptic or bool(metadata.get("sem_seg_root"))
    return tuple(task for task, there in zip(TASKS, (panoptic, instance, semantic), strict=True) if there)


def num_classes(name: str, task: str) -> int:
    """Return the number of a model's classes: things and stuff, things, or all labels. Raise as `class_names` does."""
    metadata = _metadata_for(name, task)
    things = metadata.get("thing_dataset_id_to_contiguous_id", {})
    if task == "panoptic":
        return len(things) + len(metadata.stuff_dataset_id_to_contiguous_id)
    if task == "instance":
        return len(things) or len(metadata.thing_classes)
    return len(metadata.stuff_classes)


def thing_ids(name: str, task: str) -> tuple[int, ...]:
    """Return the contiguous ids of a model's things; none for label maps. Raise as `class_names` does."""
    metadata = _metadata_for(name, task)
    if task == "instance":
        return tuple(range(num_classes(name, task)))
    if "panoptic" in available_tasks(name):
        return tuple(sorted(metadata.thing_dataset_id_to_contiguous_id.values()))
    return ()


def class_names(name: str, task: str) -> list[str]:
    """Return the names of the classes of a model for `task`, by class id.

    Raises:
        UserError: there is no such data set, it is not annotated for this task, or it names no classes for it.
    """
    metadata = _metadata_for(name, task)
    key = "thing_classes" if task == "instance" else "stuff_classes"  # in panoptic sets, these name the things too
    names = metadata.get(key)
    if names is None:
        raise UserError(f'data set "{name}" has no names of classes for {task} segmentation ({key} in its metadata)')
    return list(names)[: num_classes(name, task)]


def model_classes(cfg: CfgNode) -> tuple[list[str], tuple[int, ...]]:
    """Return the names of a model's classes, by class id, and the ids of those that are things.

    They are MODEL.CLASSES and MODEL.THINGS or, where these are empty, those of the first training data set.

    Raises:
        UserError: of `class_names`; or MODEL.NUM_CLASSES is another number.
    """
    if cfg.MODEL.CLASSES:
        names, things = list(cfg.MODEL.CLASSES), tuple(cfg.MODEL.THINGS)
    else:
        register_custom(cfg)
        name, task = cfg.DATASETS.TRAIN[0], cfg.INPUT.TASK
        names, things = class_names(name, task), thing_ids(name, task)
    if cfg.MODEL.NUM_CLASSES not in (0, len(names)):
        raise UserError(
            f"MODEL.NUM_CLASSES is {cfg.MODEL.NUM_CLASSES}, but there are {len(names)} classes; 0 takes these"
        )
    return names, things


def images_per_class(names: Sequence[str], num_classes: int) -> list[int]:
    """Count the images of instance data sets that have an object of each class."""
    counts = [0] * num_classes
    for name in names:
        for record in get_records(name):
            for category in {annotation["category_id"] for annotation in record["annotations"]}:
                counts[category] += 1
    return counts


def _metadata_for(name: str, task: str) -> Metadata:
    if task not in TASKS:
        raise UserError(f'INPUT.TASK is "{task}"; choose one of {", ".join(TASKS)}')
    available = available_tasks(name)
    if task not in available:
        raise UserError(
            f'data set "{name}" has no {task} annotations'
            + (f"; it is annotated for {' and '.join(available)} segmentation (INPUT.TASK)" if available else "")
        )
    return get_metadata(name)


register_shapes(default_root())
register_shapes(default_root(), "shapes_small", "shapes_small")
register_moving_shapes(default_root())
register_youtube_vis(default_root())
register_ade20k(default_root())
