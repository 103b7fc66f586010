"""The COCO panoptic DFormer trains in mixed precision on real images."""

import logging
from pathlib import Path

import pytest
import torch

from dformer.d2.config import get_cfg, merge_config
from dformer.d2.data import register_custom
from dformer.d2.engine.trainer import Trainer
from tests import ROOT
from tests.d2.data.real import copy_of

STEPS = 50


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_no_step_is_bad(data_dir, tmp_path, empty_catalogs, caplog, dtype):
    """With the published number of points, from random weights; the images are smaller than the published ones.

    A step in float16 takes 10 to 20 seconds on a CPU, nearly all in the convolutions' backward.
    """
    folder = copy_of(data_dir, "panoptic", tmp_path / "real")
    cfg = get_cfg()
    overrides = {"MODEL.DEVICE": "cpu", "MODEL.WEIGHTS": "", "INPUT.IMAGE_SIZE": 64, "DATALOADER.NUM_WORKERS": 0}
    overrides |= {"DATASETS.CUSTOM": f"('{folder / 'dataset.yaml'}',)", "DATASETS.TRAIN": "('real',)", "SEED": 1}
    overrides |= {"DATASETS.TEST": "()", "OUTPUT_DIR": tmp_path / "output", "TEST.EVAL_PERIOD": 0}
    overrides |= {"SOLVER.IMS_PER_BATCH": 1, "SOLVER.MAX_ITER": STEPS, "SOLVER.AMP.DTYPE": dtype}
    words = [str(word) for pair in overrides.items() for word in pair]
    merge_config(cfg, str(ROOT / "configs/coco/panoptic/dformer_r50_50ep.yaml"), words)
    assert cfg.SOLVER.AMP.ENABLED and cfg.MODEL.CRITERION.NUM_POINTS == 12544
    register_custom(cfg)
    Path(cfg.OUTPUT_DIR).mkdir()
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    with caplog.at_level(logging.WARNING, "dformer.d2.engine.trainer"):
        trainer.train()
    bad = [record for record in caplog.records if record.name == "dformer.d2.engine.trainer"]
    (updates,) = {int(state["step"]) for state in trainer.optimizer.state.values()}
    # In float16, the loss scaler halves its scale in the first steps until no gradient overflows: measured, six times.
    assert bad == [] and STEPS - (10 if dtype == "float16" else 0) <= updates <= STEPS
