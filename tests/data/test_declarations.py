"""How declared data sets are split."""

from pathlib import Path

import pytest

from dformer.data.declarations import Split, parse
from dformer.utils.errors import UserError


def test_split_depends_on_seed_and_names_alone() -> None:
    names = [f"image{k}" for k in range(100)]
    drawn = Split(0.2).validation(names)
    assert len(drawn) == 20
    assert Split(0.2).validation(names[::-1]) == drawn != Split(0.2, seed=1).validation(names)
    assert len(drawn ^ Split(0.2).validation([*names, "another"])) <= 1
    for val in (0.001, 100):
        with pytest.raises(UserError, match="split"):
            Split(val).validation(names)


def test_split_by_group_list_and_folds(tmp_path: Path) -> None:
    names = [f"p{k // 7}_slice{k}" for k in range(70)]
    files = [f"images/{name}.png" for name in names]
    held_out = Split(0.2, group=r"(p\d+)_").validation(names, files)
    assert len(held_out) == 14 and len({name.split("_")[0] for name in held_out}) == 2
    folds = [Split(folds=5, fold=k, group=r"p\d+").validation(names, files) for k in range(5)]
    assert set().union(*folds) == set(names) and [len(fold) for fold in folds] == 5 * [14]
    (tmp_path / "val.txt").write_text("p0_slice1\np3_slice22.png\n\n")
    assert Split(list=str(tmp_path / "val.txt")).validation(names, files) == {"p0_slice1", "p3_slice22"}
    for wrong in (Split(0.2, group="patient"), Split(list=str(tmp_path / "none.txt")), Split(folds=80, fold=75)):
        with pytest.raises(UserError, match="split"):
            wrong.validation(names, files)
    declaration = {"form": "instance_ids", "images": ".", "annotations": "."}
    for split in ({"val": 0.2, "folds": 5}, {"folds": 5, "fold": 5}, {"group": "p"}, {"val": 2, "group": "("}):
        with pytest.raises(UserError, match="split"):
            parse({**declaration, "split": split}, tmp_path, "")
