"""Merging of files and overrides into a cfg, and what is refused."""

import pytest

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
