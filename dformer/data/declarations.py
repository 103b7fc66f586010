"""Declarations of custom data sets, `{form: ..., images: ..., annotations: ...}`; see datasets/README.md."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from dformer.data.forms import FORMS, Source
from dformer.data.prepare import default_root
from dformer.utils.errors import UserError, did_you_mean

COMMON_KEYS = ("form", "images", "annotations")
PATHS = ("images", "annotations", "pngs", "instances", "table")
ROOT = "$DETECTRON2_DATASETS"  # at the beginning of a path: the folder of all data sets


@dataclass(frozen=True)
class Split:
    """Hold out images for validation: by a share, a list or folds. The draw is by names: adding images moves no other.

    Attributes:
        val: their number or, below 1, their share; 0: see `list` and `folds`.
        seed: of the draw.
        group: a regular expression on the images' paths. Images that match alike, in its first group if it has one,
            are of one patient, scene or video, and stay together.
        list: a file with the names of the images that are held out, one a line.
        folds, fold: of so many parts of about the same size, the one that is held out, from 0.
    """

    val: float = 0
    seed: int = 0
    group: str = ""
    list: str = ""
    folds: int = 0
    fold: int = 0

    def validation(self, names: Sequence[str], files: Sequence[str] | None = None) -> set[str]:
        """Return the names that are held out, by the images' `files`; raise UserError if none or all would be."""
        files = files or names
        if self.list:
            held_out = self._listed(names, files)
        else:
            groups = [self._group(file) for file in files] if self.group else names
            order = sorted(set(groups), key=lambda group: hashlib.sha256(f"{self.seed}/{group}".encode()).digest())
            if self.folds:
                chosen = set(order[self.fold :: self.folds])
            else:
                count, sizes = round(self.val * len(names)) if self.val < 1 else int(self.val), Counter(groups)
                before = accumulate((sizes[group] for group in order), initial=0)
                chosen = {group for group, images in zip(order, before, strict=False) if images < count}
            held_out = {name for name, group in zip(names, groups, strict=True) if group in chosen}
        if not 0 < len(held_out) < len(names):
            raise UserError(f"split: {self} leaves nothing to train on or to validate with, of {len(names)} images")
        return held_out

    def _group(self, file: str) -> str:
        match = re.search(self.group, file)
        if match is None:
            raise UserError(f'split: "{self.group}" (group) matches nothing in {file}')
        return match[1] if match.re.groups else match[0]

    def _listed(self, names: Sequence[str], files: Sequence[str]) -> set[str]:
        try:
            wanted = {line.strip() for line in Path(self.list).read_text().splitlines() if line.strip()}
        except (OSError, ValueError) as error:
            raise UserError(f"split: {self.list} (list) cannot be read: {error}") from error
        known = {key: name for name, file in zip(names, files, strict=True) for key in (Path(file).name, name)}
        if unknown := sorted(wanted - known.keys()):
            raise UserError(f"split: {self.list} names {unknown[0]}, which is no image of the data set")
        return {known[key] for key in wanted}


def resolve_path(path: str | Path, folder: Path) -> Path:
    """Return a declared path: relative to `folder`, unless it is absolute or begins with `$DETECTRON2_DATASETS`."""
    first, *rest = Path(path).parts or (".",)
    return Path(default_root(), *rest) if first == ROOT else folder / Path(path).expanduser()


def with_paths(custom: Any, of_file: Callable[[str], str], of_data: Callable[[str], str]) -> Any:
    """Return DATASETS.CUSTOM with its paths replaced: those of YAML files, and those in declarations.

    What is no list of files and declarations is returned unchanged, to be refused where it is parsed.
    """

    def replaced(key: str, value: Any) -> Any:
        if key == "split" and isinstance(value, Mapping) and isinstance(value.get("list"), str):
            return {**value, "list": of_data(value["list"])}
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
    if "things" in declaration:
        things = declaration["things"]
        names = set(values["classes"].values())
        if not isinstance(things, list | tuple) or not names.issuperset(things):
            raise UserError(f"{where}things are a list of names among the classes, got {things!r}")
        values["things"] = tuple(things)
    return Source(form, **values), _parse_split(declaration.get("split"), root, where)


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


def _parse_split(declared: Any, root: Path, where: str) -> Split | None:
    if declared is None:
        return None
    try:
        split = Split(**declared)
        re.compile(split.group)
        ways = [split.val > 0, bool(split.list), split.folds > 1 and 0 <= split.fold < split.folds]
        if sum(ways) == 1 and isinstance(split.seed, int):
            return replace(split, list=str(resolve_path(split.list, root))) if split.list else split
    except (TypeError, re.error):
        pass
    raise UserError(
        f"{where}split is {{val: number or share of images}}, {{list: file}} or {{folds: number, fold: 0}}, with "
        f"seed: 0 and group: regular expression, got {declared!r}"
    )
