"""benchmarks/loading.py, which itself checks that both mappers give the same."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from detectron2.data import MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic

NAME = "test_benchmarks_loading"


def test_both_mappers(
    script: Callable[[str], ModuleType],
    data_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    coco = data_dir / "coco_panoptic" / "coco"
    metadata = MetadataCatalog.get("coco_2017_val_panoptic").as_dict()
    keys = ("thing_classes", "stuff_classes", "thing_dataset_id_to_contiguous_id", "stuff_dataset_id_to_contiguous_id")
    register_coco_panoptic(
        NAME,
        {key: metadata[key] for key in keys},
        str(coco / "val2017"),
        str(coco / "panoptic_val2017"),
        str(coco / "annotations" / "panoptic_val2017.json"),
    )
    monkeypatch.setattr(sys, "argv", ["loading.py", "--dataset", NAME, "--images", "3", "--rounds", "1"])
    module = script("loading")
    monkeypatch.setattr(module.torch, "set_num_threads", lambda _: None)
    module.main()
    told = capsys.readouterr().out
    assert "3 images" in told and "| dformer" in told and "| detectron2" in told
