"""Merging of files and overrides into a cfg, and what is refused."""

import pytest
import yaml
from detectron2.config import CfgNode

from dformer.d2.config import get_cfg, merge_config, merge_text
from dformer.utils.errors import UserError


def test_files_are_merged_upon_their_base_and_overrides_upon_files(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {MAX_ITER: 3, BASE_LR: 0.5}\nSEED: 1\n")
    (tmp_path / "a.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 4}\n")
    cfg = get_cfg()
    merge_config(cfg, str(tmp_path / "a.yaml"), ["SEED", "2"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SEED) == (4, 0.5, 2)


@pytest.mark.parametrize(
    ("opts", "named"),
    [
        (["MODEL.MASK_DECODER.NUM_QUERYS", "5"], '"MODEL.MASK_DECODER.NUM_QUERYS".*"MODEL.MASK_DECODER.NUM_QUERIES"'),
        (["DIFUSION.ETA", "1"], '"DIFFUSION.ETA"'),
        (["SOLVER.BASE_LR"], "SOLVER.BASE_LR"),
        (["SOLVER.BASE_LR", "1", "--eval-only"], "--eval-only"),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER"),
        (["MODEL.MASK_DECODER.NUM_QUERIES", "1000000000"], "MODEL.MASK_DECODER.NUM_QUERIES"),
        (["MODEL.MASK_DECODER.NUM_QUERIES", "0"], "MODEL.MASK_DECODER.NUM_QUERIES"),
        (["MODEL.MASK_DECODER.NUM_HEADS", "7"], "MODEL.MASK_DECODER.HIDDEN_DIM"),
        (["MODEL.MASK_DECODER.HIDDEN_DIM", "34", "MODEL.MASK_DECODER.NUM_HEADS", "2"], "MODEL.MASK_DECODER.HIDDEN_DIM"),
        (["MODEL.PIXEL_DECODER.CONV_DIM", "40"], "MODEL.PIXEL_DECODER.CONV_DIM"),
        (["MODEL.CRITERION.NO_OBJECT_WEIGHT", "0"], "MODEL.CRITERION.NO_OBJECT_WEIGHT"),
        (["DIFFUSION.TIMESTEPS", "None"], "DIFFUSION.TIMESTEPS"),
        (["DIFFUSION.ETA", "-1.0"], "DIFFUSION.ETA"),
        (["TEST.OBJECT_THRESHOLD", "1e400"], "TEST.OBJECT_THRESHOLD"),
    ],
)
def test_wrong_overrides_are_named(opts, named):
    with pytest.raises(UserError, match=named):
        merge_config(get_cfg(), None, opts)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("VERSION: 2\nMODEL:\n  NUM_CLASES: 3\n", 'a.yaml.*"MODEL.NUM_CLASES".*"MODEL.NUM_CLASSES"'),
        ("MODEL: [1, 2\n", "a.yaml"),
        ("- 1", "a.yaml"),
        ("_BASE_: missing.yaml", "missing.yaml"),
        ("_BASE_: a.yaml", "a.yaml"),
        (None, "a.yaml"),
    ],
)
def test_wrong_files_are_named(tmp_path, text, named):
    if text:
        (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=named):
        merge_config(get_cfg(), str(tmp_path / "a.yaml"), [])


def test_configs_cannot_run_code(tmp_path):
    text = f"VERSION: 2\nOUTPUT_DIR: !!python/object/apply:os.system ['touch {tmp_path / 'ran'}']\n"
    (tmp_path / "evil.yaml").write_text(text)
    with pytest.raises(UserError, match="evil.yaml"):
        merge_config(get_cfg(), str(tmp_path / "evil.yaml"), [])
    with pytest.raises(UserError, match="model.pth"):
        merge_text(get_cfg(), text, "the config in model.pth")
    assert not (tmp_path / "ran").exists()


DECLARED = {"form": "yolo_segment", "images": "images", "annotations": "/labels", "classes": "names.txt"}


def declared(cfg: CfgNode) -> list:
    """Paths of the only declaration."""
    ((declaration,),) = (entry.values() for entry in cfg.DATASETS.CUSTOM)
    return [declaration[key] for key in ("images", "annotations", "classes")]


def test_paths_of_data_are_relative_to_the_config_that_has_them(tmp_path, monkeypatch):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    custom = {"DATASETS": {"CUSTOM": [{"mine": DECLARED}]}}
    (tmp_path / "a" / "base.yaml").write_text(yaml.safe_dump(custom))
    (folder / "config.yaml").write_text("_BASE_: ../base.yaml\nSEED: 1\n")
    (folder / "files.yaml").write_text("DATASETS: {CUSTOM: [sets.yaml, $DETECTRON2_DATASETS/sets.yaml]}\n")
    monkeypatch.chdir(tmp_path)
    cfg = get_cfg()
    merge_config(cfg, "a/b/config.yaml", [])
    assert declared(cfg) == [str(tmp_path / "a" / "images"), "/labels", str(tmp_path / "a" / "names.txt")]
    monkeypatch.chdir("/")
    again = get_cfg()
    merge_text(again, cfg.dump(), "checkpoint")
    assert declared(again) == declared(cfg)
    merge_config(cfg, str(folder / "files.yaml"), [])
    assert list(cfg.DATASETS.CUSTOM) == [str(folder / "sets.yaml"), "$DETECTRON2_DATASETS/sets.yaml"]


def test_overrides_are_relative_to_where_they_are_typed_and_stay_so(tmp_path, monkeypatch):
    """Declarations to the folder of all data sets, files to the working directory, also where they are stored."""
    monkeypatch.chdir(tmp_path)
    cfg = get_cfg()
    merge_config(cfg, None, ["DATASETS.CUSTOM", str([{"mine": DECLARED}])])
    expected = ["$DETECTRON2_DATASETS/images", "/labels", "$DETECTRON2_DATASETS/names.txt"]
    assert declared(cfg) == expected
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "config.yaml").write_text(cfg.dump())
    again = get_cfg()
    merge_config(again, "output/config.yaml", [])
    assert declared(again) == expected
    merge_config(cfg, None, ["DATASETS.CUSTOM", "['sets.yaml']"])
    assert list(cfg.DATASETS.CUSTOM) == [str(tmp_path / "sets.yaml")]


def test_a_path_that_is_meant_for_the_folder_of_all_data_is_named(tmp_path, monkeypatch):
    (tmp_path / "data" / "images").mkdir(parents=True)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "data"))
    custom = {"DATASETS": {"CUSTOM": [{"mine": {**DECLARED, "images": "images/*.jpg"}}]}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(custom))
    with pytest.raises(UserError, match=r"config\.yaml.*DATASETS\.CUSTOM.*\$DETECTRON2_DATASETS/images/\*\.jpg"):
        merge_config(get_cfg(), str(tmp_path / "config.yaml"), [])


def test_configs_that_come_with_dformer_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = get_cfg()
    merge_config(cfg, "configs/quick/mask2former_shapes.yaml", [])
    assert cfg.MODEL.META_ARCHITECTURE == "Mask2Former"
    (tmp_path / "configs/quick").mkdir(parents=True)
    (tmp_path / "configs/quick/mask2former_shapes.yaml").write_text("VERSION: 2\nSEED: 7\n")
    cfg = get_cfg()
    merge_config(cfg, "configs/quick/mask2former_shapes.yaml", [])
    assert cfg.SEED == 7, "a user's own goes first"
    with pytest.raises(UserError, match="configs/quick/mask2former_shape.yaml.*mask2former_shapes.yaml"):
        merge_config(cfg, "configs/quick/mask2former_shape.yaml", [])
