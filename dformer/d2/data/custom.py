"""Custom data sets, declared in a config (DATASETS.CUSTOM), on the command line or in a YAML file.

A declaration is `name: {form:, images:, annotations:, ...}`; see datasets/README.md. Declared data sets are registered
with Detectron2 under their names, like any other.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from dformer.d2.config import read_yaml
from dformer.data.declarations import Split, parse, resolve_path
from dformer.data.forms import FORMS, Annotated
from dformer.data.prepare import default_root
from dformer.utils.errors import UserError


def register_custom(cfg: CfgNode) -> list[str]:
    """Register the declarations in DATASETS.CUSTOM, unless they are registered; return the names.

    Raises:
        UserError: a file cannot be read, a declaration is wrong, or a name is taken.
    """
    names = []
    for entry in cfg.DATASETS.CUSTOM:
        names += register_file(entry) if isinstance(entry, str) else register_declarations(entry)
    return names


def find_datasets(words: Sequence[str]) -> list[str]:
    """Find data sets by names and by YAML files, whose declarations are registered; return all names."""
    found: list[str] = []
    for word in words:
        found += register_file(word) if word.endswith((".yaml", ".yml")) else [word]
    return found


def register_file(file: str | Path) -> list[str]:
    """Register the declarations of a YAML file, with paths relative to its folder; return the names."""
    file = resolve_path(file, Path())
    try:
        text = file.read_text()
    except (OSError, ValueError) as error:
        raise UserError(f"data set file {file} cannot be read: {error}") from error
    return register_declarations(read_yaml(text, f"data set file {file}"), file.resolve().parent, f"{file}: ")


def register_declarations(declarations: Any, root: Path | None = None, where: str = "DATASETS.CUSTOM: ") -> list[str]:
    """Register `{name: declaration, ...}`, with paths relative to `root` (DETECTRON2_DATASETS); return the names."""
    if not isinstance(declarations, Mapping):
        raise UserError(f"{where}expected `name: {{form: ..., images: ..., annotations: ...}}`, got {declarations!r}")
    names = []
    for name, declaration in declarations.items():
        source, split = parse(declaration, root or Path(default_root()), f"{where}{name}: ")
        read = cache(partial(FORMS[source.form].read, source))
        parts = ((f"{name}_train", False), (f"{name}_val", True)) if split else ((name, None),)
        for part, validation in parts:
            if part not in DatasetCatalog:
                DatasetCatalog.register(part, partial(_load, part, read, split, validation))
                MetadataCatalog.get(part).set(declared=(source, split))
            elif MetadataCatalog.get(part).get("declared") != (source, split):
                raise UserError(f'{where}there is a data set "{part}" already; choose another name')
            names.append(part)
    return names


def _load(
    name: str, read: Callable[[], Annotated], split: Split | None, validation: bool | None
) -> list[dict[str, Any]]:
    """The records of a declared data set; sets its metadata."""
    records, metadata = read()
    if split:
        files: dict[str, str] = {}  # of images, or of the first frame of each video, which stays together
        for r in records:
            files.setdefault(_unit(r), str(r["file_name"]))
        held_out = split.validation(list(files), list(files.values()))
        records = [r for r in records if (_unit(r) in held_out) == validation]
    MetadataCatalog.get(name).set(**metadata)
    return [dict(r) for r in records]


def _unit(record: dict[str, Any]) -> str:
    """The name of a record's video or, where it is of none, of its image."""
    return str(record.get("video_id", record["image_id"]))
