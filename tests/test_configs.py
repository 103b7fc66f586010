"""Every config of the repository merges and builds, and says what it should."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from dformer.d2 import get_cfg, merge_config
from dformer.errors import UserError

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
PARTS = {"base.yaml", "camvid.yaml", "pennfudan.yaml"} | {
    path.name for path in CONFIGS.glob("*/*.yaml") if path.parent.name in ("backbones", "coco")
}
MODELS = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.yaml") if p.name not in PARTS)


def load(name, *opts):
    cfg = get_cfg()
    merge_config(cfg, str(CONFIGS / name), ["MODEL.DEVICE", "cpu", "MODEL.TIMM.PRETRAINED", "False", *opts])
    return cfg


def millions(model):
    return sum(p.numel() for p in model.parameters()) / 1e6


@pytest.mark.parametrize("name", MODELS)
def test_builds(name, monkeypatch, request):
    if name.startswith("own/"):  # their classes are in the data
        monkeypatch.setenv("DETECTRON2_DATASETS", str(request.getfixturevalue("data_dir")))
    cfg = load(name)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *args: self)
    with torch.device("meta"):
        model = build_model(cfg)
    size = millions(model)
    if "_r50_" in name:
        assert 43.5 < size < 46  # 44 M in the papers
    elif "_swin_tiny_" in name:
        assert 47 < size < 49.5  # 47 M in Mask2Former's


@pytest.mark.parametrize(
    "name", sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob("*.yaml") if p.name in PARTS)
)
def test_parts_merge(name):
    assert load(name) != get_cfg()


def test_there_are_configs_for_all_tasks_backbones_and_systems():
    for folder in ("coco/panoptic", "coco/instance", "ade20k/semantic"):
        for system in ("dformer", "mask2former"):
            for backbone in ("r50", "swin_tiny"):
                assert any(name.startswith(f"{folder}/{system}_{backbone}_") for name in MODELS)


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("coco")])
def test_coco_recipe(name):
    cfg = load(name)
    images = cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH
    assert images == pytest.approx(50 * 118000, rel=1e-3)
    assert [step / cfg.SOLVER.MAX_ITER for step in cfg.SOLVER.STEPS] == pytest.approx([0.9, 0.95], abs=1e-5)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.BACKBONE_MULTIPLIER) == (1e-4, 0.05, 0.1)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (
            ["MODEL.MASK_DECODER.NUM_QUERYS", "5"],
            'no config key "MODEL.MASK_DECODER.NUM_QUERYS", did you mean "MODEL.MASK',
        ),
        (["DIFUSION.ETA", "1"], 'did you mean "DIFFUSION.ETA"'),
        (["SOLVER.BASE_LR"], "pairs"),
        (["SOLVER.BASE_LR", "1", "--eval-only"], "--eval-only stands among .* options go before"),
        (["SOLVER.MAX_ITER", "many"], "SOLVER.MAX_ITER"),
    ],
)
def test_wrong_overrides_are_told(opts, message):
    with pytest.raises(UserError, match=message):
        merge_config(get_cfg(), None, opts)


def test_wrong_files_are_told(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        merge_config(get_cfg(), str(tmp_path / "none.yaml"), [])
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("VERSION: 2\nMODEL:\n  NUM_CLASES: 3\n")
    with pytest.raises(
        UserError, match='wrong.yaml: there is no config key "MODEL.NUM_CLASES", did you mean "MODEL.NUM_'
    ):
        merge_config(get_cfg(), str(wrong), [])
    wrong.write_text("MODEL: [1, 2\n")
    with pytest.raises(UserError, match="wrong.yaml"):
        merge_config(get_cfg(), str(wrong), [])


def test_configs_cannot_run_code(tmp_path):
    marker = tmp_path / "ran"
    evil = tmp_path / "evil.yaml"
    evil.write_text(f"VERSION: 2\nOUTPUT_DIR: !!python/object/apply:os.system ['touch {marker}']\n")
    with pytest.raises(UserError, match="evil.yaml"):
        merge_config(get_cfg(), str(evil), [])
    assert not marker.exists()
