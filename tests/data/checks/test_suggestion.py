"""Suggested configs: what the rules give for typical data, and that the tools take them."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.config import CfgNode

from dformer.d2.config import get_cfg, merge_config
from dformer.data.checks.findings import CheckedImage
from dformer.data.checks.suggestion import Numbers, suggest, write_suggestion
from dformer.utils.errors import UserError


def numbers(size: tuple[int, int], sides: list[float], images: int = 100) -> Numbers:
    checked = CheckedImage("a.png", size, classes=[0] * len(sides), sides=sides)
    return Numbers.of([checked, CheckedImage("broken.png")], images)


def config(found: Numbers, task: str, tmp_path: Path) -> CfgNode:
    cfg = get_cfg()
    (tmp_path / "sets.yaml").touch()
    write_suggestion(tmp_path / "mine.yaml", found, task, ("a_train", "a_val"), tmp_path / "sets.yaml")
    merge_config(cfg, str(tmp_path / "mine.yaml"), [])
    assert list(cfg.DATASETS.CUSTOM) == [str(tmp_path / "sets.yaml")]
    return cfg


def test_many_small_objects_are_enlarged_and_seen_in_tiles(tmp_path: Path) -> None:
    cfg = config(numbers((256, 256), np.linspace(5, 15, 115).tolist()), "instance", tmp_path)
    assert (cfg.INPUT.AUGMENTATION, cfg.INPUT.SCALE_TEST, cfg.INPUT.IMAGE_SIZE) == ("native", 2.0, 128)
    assert cfg.TEST.TILE == 128 and 15 * 2 <= cfg.TEST.TILE_OVERLAP <= 64
    assert 20 <= cfg.MODEL.MASK_DECODER.NUM_QUERIES <= 40 and cfg.TEST.DETECTIONS_PER_IMAGE >= 115


def test_small_objects_of_a_large_picture_keep_their_size(tmp_path: Path) -> None:
    cfg = config(numbers((4000, 6000), [30.0] * 400), "instance", tmp_path)
    assert (cfg.INPUT.AUGMENTATION, cfg.INPUT.SCALE_TEST) == ("native", 1.0)
    assert 120 <= cfg.TEST.TILE <= 512


def test_few_large_objects_are_seen_at_once(tmp_path: Path) -> None:
    cfg = config(numbers((480, 640), [120.0, 90.0, 200.0]), "panoptic", tmp_path)
    assert (cfg.INPUT.AUGMENTATION, cfg.INPUT.IMAGE_SIZE, cfg.TEST.TILE) == ("lsj", 512, 0)
    assert cfg.MODEL.MASK_DECODER.NUM_QUERIES == 20 and cfg.MODEL.CRITERION.NUM_POINTS == 8192


def test_label_maps_need_no_object(tmp_path: Path) -> None:
    cfg = config(numbers((160, 240), []), "semantic", tmp_path)
    assert (cfg.INPUT.TASK, cfg.INPUT.IMAGE_SIZE, list(cfg.TEST.TASKS)) == ("semantic", 256, ["semantic"])


def test_a_file_is_not_overwritten_and_nothing_suggests_nothing(tmp_path: Path) -> None:
    found = numbers((64, 64), [20.0])
    text = suggest(found, "instance", ("a", "a"), "")
    assert "CUSTOM" not in yaml.safe_load(text)["DATASETS"]
    (tmp_path / "mine.yaml").write_text("mine")
    with pytest.raises(UserError, match="mine.yaml"):
        write_suggestion(tmp_path / "mine.yaml", found, "instance", ("a", "a"), None)
    with pytest.raises(UserError, match="no image"):
        Numbers.of([CheckedImage("broken.png")], 1)
