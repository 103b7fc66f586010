"""Declarations of own data sets, `{form: ..., images: ..., annotations: ...}`; datasets/README.md shows each form."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dformer.data.forms import FORMS, Source, read_classes
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
