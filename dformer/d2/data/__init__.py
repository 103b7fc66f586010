"""Data sets, from files to what the model takes. Importing this registers Shapes and ADE20K with Detectron2."""

from dformer.d2.data.check import check_datasets
from dformer.d2.data.custom import find_datasets, register_custom, register_declarations, register_file
from dformer.d2.data.datasets import (
    available_tasks,
    class_names,
    get_metadata,
    model_classes,
    num_classes,
    register_shapes,
    thing_ids,
)
from dformer.d2.data.loaders import build_test_loader, build_train_loader
from dformer.d2.data.mappers import TestMapper, TrainMapper
from dformer.data.images import read_image

__all__ = [
    "TestMapper",
    "TrainMapper",
    "available_tasks",
    "build_test_loader",
    "build_train_loader",
    "check_datasets",
    "class_names",
    "find_datasets",
    "get_metadata",
    "model_classes",
    "num_classes",
    "read_image",
    "register_custom",
    "register_declarations",
    "register_file",
    "register_shapes",
    "thing_ids",
]
