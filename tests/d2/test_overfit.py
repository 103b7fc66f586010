"""Small models learn eight photographs of COCO by heart: everything from the files to PQ, together."""

import json

import pytest

from dformer.d2.config import get_cfg, merge_config
from dformer.d2.engine.run import run
from tests import ROOT
from tests.d2.tiny import own_loggers

# Every image is padded to 256 x 256, in training and evaluation: where a query attends depends on the padded size, so a
# size that was not trained gives worse masks.
COMMON = """
VERSION: 2
MODEL:
  DEVICE: cpu
  SIZE_DIVISIBILITY: 256
  BACKBONE: {NAME: build_timm_backbone}
DATALOADER: {NUM_WORKERS: 0, ASPECT_RATIO_GROUPING: False}  # all eight in each batch
INPUT:
  AUGMENTATION: resize
  RANDOM_FLIP: none
  MIN_SIZE_TRAIN: [192]
  MAX_SIZE_TRAIN: 256
  MIN_SIZE_TEST: 192
  MAX_SIZE_TEST: 256
SOLVER:
  IMS_PER_BATCH: 8
  BACKBONE_MULTIPLIER: 1.0
  LR_SCHEDULER_NAME: WarmupPolyLR
  WARMUP_FACTOR: 0.01
TEST: {TASKS: [panoptic], EVAL_PERIOD: 150, OBJECT_THRESHOLD: 0.5}
SEED: 0
"""
SYSTEMS = {
    "DFormer": """
MODEL:
  META_ARCHITECTURE: DFormer
  TIMM: {NAME: regnetx_002}
  PIXEL_DECODER: {CONV_DIM: 64, MASK_DIM: 64, NUM_LAYERS: 2, FFN_DIM: 256}
  MASK_DECODER: {NUM_QUERIES: 20, HIDDEN_DIM: 64, FFN_DIM: 256, NUM_LAYERS: 3}
  CRITERION: {CLASS_WEIGHT: 10.0, CLASS_COST: 10.0, NUM_POINTS: 1024}
SOLVER: {MAX_ITER: 450, BASE_LR: 0.001, WARMUP_ITERS: 100, CLIP_GRADIENTS: {CLIP_VALUE: 0.1}}
""",
    "Pix2SeqD": f"""
_BASE_: {ROOT}/configs/systems/pix2seqd_small.yaml
MODEL:
  TIMM: {{NAME: regnetx_002}}
  PIX2SEQD: {{MASK_WEIGHT_POWER: 0.5}}  # some segments are as small as 10 x 10 pixels
SOLVER: {{MAX_ITER: 700, BASE_LR: 0.004, WARMUP_ITERS: 20, AMP: {{ENABLED: True, DTYPE: bfloat16}}}}
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_eight_images_are_learned_by_heart(system, data_dir, tmp_path):
    coco = data_dir / "coco_panoptic/coco"
    content = json.loads((coco / "annotations/panoptic_train2017.json").read_text())
    # The first eight, by id, of 3 to 8 segments, none of them a crowd.
    listed = [(a["image_id"], a["segments_info"]) for a in content["annotations"]]
    chosen = sorted(k for k, info in listed if 3 <= len(info) <= 8 and not any(s["iscrowd"] for s in info))[:8]
    content["images"] = [image for image in content["images"] if image["id"] in chosen]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in chosen]
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    cfg = get_cfg()
    for name, text in (("common", COMMON), ("system", SYSTEMS[system])):
        (tmp_path / f"{name}.yaml").write_text(text)
        merge_config(cfg, str(tmp_path / f"{name}.yaml"), [])
    files = {"images": str(coco / "train2017"), "pngs": str(coco / "panoptic_train2017")}
    declared = {"form": "coco_panoptic", "annotations": str(tmp_path / "panoptic.json"), **files}
    cfg.DATASETS.CUSTOM = ({"coco_first_eight": declared},)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("coco_first_eight",)
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    with own_loggers():
        run(cfg)
    assert json.loads((tmp_path / "output/results.json").read_text())["PQ"] >= 80
