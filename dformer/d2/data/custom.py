"""Own data sets, declared in a config (DATASETS.CUSTOM), on the command line or in a YAML file; no Python is needed.

A declaration is `name: {form:, images:, annotations:, ...}`; datasets/README.md shows each form. Declared data sets are
registered under their names, so that all else treats them as any other.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from dformer.d2.config import read_yaml
from dformer.d2.data.forms import FORMS, Annotated, Source, read_classes
from dformer.utils.errors import UserError, did_you_mean

COMMON_KEYS = ("form", "images", "annotations")
PATHS = ("images", "annotations", "pngs", "instances")


@dataclass(frozen=True)
class Split:
    """Images that are held out for validation, drawn by their names: adding images moves no other image.

    Attributes:
        val: their number or, below 1, their share.
        seed: of the draw.
    """

    val: float
    seed: int = 0

    def validation(self, names: list[str]) -> set[str]:
        """The names that are drawn.

        Raises:
            UserError: no image would be left on one of the sides.
        """
        count = round(self.val * len(names)) if self.val < 1 else int(self.val)
        if not 0 < count < len(names):
            raise UserError(f"split: {self.val} of {len(names)} images leaves nothing to train on or to validate with")
        return set(sorted(names, key=lambda name: hashlib.sha256(f"{self.seed}/{name}".encode()).digest())[:count])


def register_custom(cfg: CfgNode) -> list[str]:
    """Register what DATASETS.CUSTOM declares; return the names. What is registered already stays.

    Raises:
        UserError: a declaration is wrong (the file, data set and key are named), or a name is taken.
    """
    names = []
    for entry in cfg.DATASETS.CUSTOM:
        names += register_file(entry) if isinstance(entry, str) else register_declarations(entry)
    return names


def find_datasets(words: Sequence[str]) -> list[str]:
    """Names of data sets, from names and YAML files of declarations, which are registered.

    Raises:
        UserError: a file cannot be read or declares something wrong.
    """
    found: list[str] = []
    for word in words:
        found += register_file(word) if word.endswith((".yaml", ".yml")) else [word]
    return found


def register_file(file: str | Path) -> list[str]:
    """Register the declarations of a YAML file, whose relative paths start at its folder; return the names.

    Raises:
        UserError: as `register_custom`, or the file cannot be read.
    """
    try:
        text = Path(file).read_text()
    except (OSError, ValueError) as error:
        raise UserError(f"data set file {file} cannot be read: {error}") from error
    return register_declarations(read_yaml(text, f"data set file {file}"), Path(file).resolve().parent, f"{file}: ")


def register_declarations(declarations: Any, root: Path | None = None, where: str = "DATASETS.CUSTOM: ") -> list[str]:
    """Register `{name: declaration, ...}`, with relative paths below `root` (DETECTRON2_DATASETS); return the names.

    Raises:
        UserError: as `register_custom`.
    """
    if not isinstance(declarations, Mapping):
        raise UserError(f"{where}expected `name: {{form: ..., images: ..., annotations: ...}}`, got {declarations!r}")
    root = root or Path(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    names = []
    for name, declaration in declarations.items():
        source, split = parse(declaration, root, f"{where}{name}: ")
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


def parse(declaration: Any, root: Path, where: str) -> tuple[Source, Split | None]:
    """What a declaration says, with paths below `root`.

    Raises:
        UserError: a key is unknown (the nearest one is named), missing or of the wrong type; `where` comes first.
    """
    if not isinstance(declaration, Mapping):
        raise UserError(f"{where}expected {{form: ..., images: ..., annotations: ...}}, got {declaration!r}")
    form = declaration.get("form")
    if form not in FORMS:
        raise UserError(f'{where}form is "{form}"{did_you_mean(str(form), FORMS)} (there are {", ".join(FORMS)})')
    required = (*COMMON_KEYS, *FORMS[form].required)
    known = (*required, *FORMS[form].optional, "split")
    for key in declaration:
        if key not in known:
            raise UserError(
                f'{where}the form {form} has no key "{key}"{did_you_mean(str(key), known)} (it has {", ".join(known)})'
            )
    for key in required:
        if key not in declaration:
            raise UserError(f'{where}the form {form} needs the key "{key}"')
    values: dict[str, Any] = {"form": form}
    for key in PATHS:
        if key in declaration:
            values[key] = root / str(declaration[key])
    if "classes" in declaration:
        classes = declaration["classes"]
        values["classes"] = read_classes(root / classes if isinstance(classes, str) else classes, where.rstrip(": "))
    if "void" in declaration:
        void = declaration["void"]
        values["void"] = tuple(void) if isinstance(void, list | tuple) else (void,)
        if not all(isinstance(value, int) for value in values["void"]):
            raise UserError(f"{where}void is a value of pixels, or a list of them, got {void!r}")
        named = set(values["void"]) & set(values.get("classes", {}))
        if named:
            raise UserError(f"{where}{min(named)} is declared as void, and as class {values['classes'][min(named)]!r}")
    return Source(**values), _parse_split(declaration.get("split"), where)


def _parse_split(declared: Any, where: str) -> Split | None:
    if declared is None:
        return None
    if (
        not isinstance(declared, Mapping)
        or set(declared) - {"val", "seed"}
        or not isinstance(declared.get("val"), int | float)
        or declared["val"] <= 0
        or not isinstance(declared.get("seed", 0), int)
    ):
        raise UserError(f"{where}split is {{val: number or share of images, seed: 0}}, got {declared!r}")
    return Split(declared["val"], declared.get("seed", 0))


def _load(
    name: str, read: Callable[[], Annotated], split: Split | None, validation: bool | None
) -> list[dict[str, Any]]:
    """The records of a declared data set; sets its metadata."""
    records, metadata = read()
    if split:
        held_out = split.validation([str(r["image_id"]) for r in records])
        records = [r for r in records if (str(r["image_id"]) in held_out) == validation]
    MetadataCatalog.get(name).set(**metadata)
    return [dict(r) for r in records]
