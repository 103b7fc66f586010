"""Contact sheets show what the mappers give."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from PIL import Image

from dformer.apps.contact_sheet import contact_sheet
from dformer.d2.config import get_cfg
from dformer.d2.data import register_custom
from dformer.d2.data.mappers import TestMapper, TrainMapper
from dformer.utils import rng
from tests import run_script


@pytest.fixture
def cfg(data_dir: Path, monkeypatch: pytest.MonkeyPatch, empty_catalogs: None) -> CfgNode:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(data_dir))
    cfg = get_cfg()
    folders = {"images": "$DETECTRON2_DATASETS/camvid/val", "annotations": "$DETECTRON2_DATASETS/camvid/valannot"}
    declaration = {"form": "semantic", **folders, "classes": {k: f"class {k}" for k in range(11)}, "void": 11}
    cfg.DATASETS.CUSTOM, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = [{"cam": declaration}], ("cam",), ()
    cfg.INPUT.TASK, cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SCALE = "semantic", 128, 96, 1.0
    return cfg


@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_cells_are_what_the_mappers_give(cfg: CfgNode, image_format: str) -> None:
    cfg.INPUT.FORMAT = image_format
    register_custom(cfg)
    sheet = np.asarray(contact_sheet(cfg, rows=1, draws=2, cell=136))
    assert sheet.shape == (22 + 136, 4 * 136, 3)
    record = DatasetCatalog.get("cam")[0]
    with rng.seeded("contact sheet", 0):
        tested = TestMapper.from_config(cfg)(record)
        trained, again = (TrainMapper.from_config(cfg)(record) for _ in range(2))
    picture = tested["image"].permute(1, 2, 0).numpy()[:, :, :: 1 if image_format == "RGB" else -1]
    assert picture.shape == (96, 128, 3)
    shown = sheet[26 : 26 + 96, 136 + 4 : 136 + 4 + 128]
    np.testing.assert_array_equal(shown, picture)
    assert not np.array_equal(trained["image"], again["image"]), "each draw is another"
    cells = sheet[26 : 26 + 128, 4 + 2 * 136 :]
    for column, image in enumerate((trained, again)):
        inside = image["instances"].gt_masks.any(0).numpy()
        drawn = cells[:, column * 136 : column * 136 + 128]
        differs = np.abs(drawn.astype(int) - image["image"].permute(1, 2, 0).numpy()).sum(2) > 10
        assert differs[inside].mean() > 0.8, "the classes are coloured"


def test_command_line(cfg: CfgNode, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "config.yaml").write_text(cfg.dump())
    small = ["--config-file", tmp_path / "config.yaml", "--images", 1, "--draws", 1]
    run = partial(run_script, "tools/visualize_data.py", *small)
    outputs = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for output, seed in zip(outputs, (1, 1, 2), strict=True):
        assert run("--output", output, "--seed", seed) == 0
    a, b, c = (np.asarray(Image.open(output)) for output in outputs)
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert run("--output", outputs[1], "--seed", 1, "--no-labels") == 0
    bare = np.asarray(Image.open(outputs[1]))
    assert np.array_equal(a[:, 360:720], bare[:, 360:720]) and not np.array_equal(a, bare)
    for wrong, named in ((["--images", 0], "--images"), (["--output", tmp_path / "a.nothing"], "a.nothing")):
        assert run(*wrong) == 2 and named in capsys.readouterr().err
