"""Declarations of custom data sets, `{form: ..., images: ..., annotations: ...}`; see datasets/README.md."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dformer.data.forms import FORMS, Source
from dformer.data.prepare import default_root
from dformer.utils.errors import UserError, did_you_mean

COMMON_KEYS = ("form", "images", "annotations")
PATHS = ("images", "annotations", "pngs", "instances")
ROOT = "$DETECTRON2_DATASETS"  # at the beginning of a path: the folder of all data sets


@dataclass(frozen=True)
class Split:
    """Hold out images for validation, drawn by their names: adding images moves no other image.

    Attributes:
        val: their number or, below 1, their share.
        seed: of the draw.
    """

    val: float
    seed: int = 0

    def validation(self, names: list[str]) -> set[str]:
        """Return the names that are drawn; raise UserError if none or all would be."""
        count = round(self.val * len(names)) if self.val < 1 else int(self.val)
        if not 0 < count < len(names):
            raise UserError(f"split: {self.val} of {len(names)} images leaves nothing to train on or to validate with")
        return set(sorted(names, key=lambda name: hashlib.sha256(f"{self.seed}/{name}".encode()).digest())[:count])


def resolve_path(path: str | Path, folder: Path) -> Path:
    """Return a declared path: relative to `folder`, unless it is absolute or begins with `$DETECTRON2_DATASETS`."""
    first, *rest = Path(path).parts or (".",)
    return Path(default_root(), *rest) if first == ROOT else folder / Path(path).expanduser()


def with_paths(custom: Any, of_file: Callable[[str], str], of_data: Callable[[str], str]) -> Any:
    """Return DATASETS.CUSTOM with its paths replaced: those of YAML files, and those in declarations.

    What is no list of files and declarations is returned unchanged, to be refused where it is parsed.
    """

    def replaced(key: str, value: Any) -> Any:
        is_path = isinstance(value, str) and (key in PATHS or key == "classes")
        return of_data(value) if is_path else value

    def declaration(entry: Any) -> Any:
        return {k: replaced(k, v) for k, v in entry.items()} if isinstance(entry, Mapping) else entry

    def entry(item: Any) -> Any:
        if isinstance(item, Mapping):
            return {name: declaration(each) for name, each in item.items()}
        return of_file(item) if isinstance(item, str) else item

    return tuple(map(entry, custom)) if isinstance(custom, list | tuple) else custom


def parse(declaration: Any, root: Path, where: str) -> tuple[Source, Split | None]:
    """Parse a declaration; return its source, with paths below `root`, and its split.

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
    if unknown := [str(key) for key in declaration if key not in known]:
        nearest = did_you_mean(unknown[0], known)
        raise UserError(f'{where}the form {form} has no key "{unknown[0]}"{nearest} (it has {", ".join(known)})')
    if missing := [key for key in required if key not in declaration]:
        raise UserError(f'{where}the form {form} needs the key "{missing[0]}"')
    values: dict[str, Any] = {key: resolve_path(str(declaration[key]), root) for key in PATHS if key in declaration}
    if "classes" in declaration:
        values["classes"] = _parse_classes(declaration["classes"], root, where)
    if "void" in declaration:
        void = declaration["void"]
        values["void"] = tuple(void) if isinstance(void, list | tuple) else (void,)
        if not all(isinstance(value, int) for value in values["void"]):
            raise UserError(f"{where}void is a value of pixels, or a list of them, got {void!r}")
        if named := set(values["void"]) & set(values.get("classes", {})):
            raise UserError(f"{where}{min(named)} is declared as void, and in classes")
    return Source(form, **values), _parse_split(declaration.get("split"), where)


def _parse_classes(declared: Any, root: Path, where: str) -> dict[int, str]:
    """Value -> class name, from a list, a mapping, or a file of either (.txt: a name a line; YOLO's has `names`)."""
    if isinstance(declared, str):
        file = resolve_path(declared, root)
        try:
            text = file.read_text()
            declared = text.split("\n") if file.suffix == ".txt" else yaml.safe_load(text)
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{where}{file} cannot be read: {error}") from error
        if isinstance(declared, dict) and "names" in declared:
            declared = declared["names"]
    if isinstance(declared, list | tuple):
        declared = dict(enumerate(str(name).strip() for name in declared if str(name).strip()))
    if not (isinstance(declared, dict) and declared and all(isinstance(value, int) for value in declared)):
        raise UserError(f"{where}classes are a list of names, a mapping of values to names, or a file of either")
    return {value: str(name) for value, name in declared.items()}


def _parse_split(declared: Any, where: str) -> Split | None:
    if declared is None:
        return None
    try:
        split = Split(**declared)
        if split.val > 0 and isinstance(split.seed, int):
            return split
    except TypeError:
        pass
    raise UserError(f"{where}split is {{val: number or share of images, seed: 0}}, got {declared!r}")
