"""Private names of other libraries: each is used in one file, and was in these versions."""

import ast
from collections import defaultdict
from importlib.metadata import version

import pytest
import timm
import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from pycocotools.cocoeval import COCOeval
from torch import distributed

from tests import ROOT

# Name: the file, whose it is, the versions that have it, and where to look for it.
DETECTRON2 = "0.5, 0.6 and main of 2025"
NAMES = {
    "_LOCAL_PROCESS_GROUP": ("dformer/d2/engine/launch.py", "detectron2", DETECTRON2, comm),
    "_get_global_gloo_group": ("dformer/d2/engine/launch.py", "detectron2", DETECTRON2, comm),
    "_history": ("dformer/d2/engine/hooks/writers.py", "detectron2", DETECTRON2, EventStorage()),
    "_get_default_store": ("dformer/d2/engine/launch.py", "torch", "2.12", distributed.distributed_c10d),
    "_foreach_lerp_": ("dformer/utils/ema.py", "torch", "2.12", torch),
    "_python_dispatch": ("benchmarks/measure.py", "torch", "2.12", torch.utils),
    "_subclasses": ("benchmarks/memory/training.py", "torch", "2.12", torch),
    "_pytree": ("benchmarks/memory/training.py", "torch", "2.12", torch.utils),
    "_attn": ("dformer/d2/modeling/backbones.py", "timm", "1.0.31", timm.models.swin_transformer.SwinTransformerBlock),
    "_gts": ("dformer/metrics/boundary.py", "pycocotools", "2.0.11", COCOeval()),
    "_dts": ("dformer/metrics/boundary.py", "pycocotools", "2.0.11", COCOeval()),
}
PUBLIC = {"_exit", "_asdict", "_replace"}  # in spite of the underscore: of os, and of named tuples


def used(tree: ast.Module) -> set[str]:
    """Private names that a file takes from elsewhere, by an import or as an attribute, and does not define itself."""
    own, found = set[str](), set[str]()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                own.add(name)
            case ast.Attribute(attr=name, ctx=ast.Store(), value=ast.Name(id="self" | "cls")):
                own.add(name)
        match node:
            case ast.Attribute(attr=name):
                found.add(name)
            case ast.Import(names=names):
                found |= {part for alias in names for part in alias.name.split(".")}
            case ast.ImportFrom(module=module, names=names):
                found |= {*(module or "").split("."), *(alias.name for alias in names)}
    return {name for name in found - own if name.startswith("_") and not name.startswith("__")}


def test_each_is_used_in_one_file():
    files = defaultdict(set)
    for folder in ("dformer", "tools", "datasets", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            for name in used(ast.parse(path.read_text())) - PUBLIC:
                files[name].add(str(path.relative_to(ROOT)))
    assert files == {name: {file} for name, (file, *_) in NAMES.items()}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_there(name):
    file, library, versions, owner = NAMES[name]
    assert hasattr(owner, name), f"{library} {version(library)} has no {name}, as {versions} had: change {file}"
