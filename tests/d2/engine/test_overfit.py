"""A small DFormer learns eight photographs of COCO by heart: everything from the files to PQ, together."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_panoptic

from dformer.d2.config import get_cfg, merge_config
from dformer.d2.engine.run import check, run
from tests.d2.tiny import own_loggers

NAME = "coco_first_eight"

# Every image is padded to 256 x 256, in training and after: where a query looks goes by the padded image's sides, and
# a size that was not trained at would be asked for something that was not learned.
CONFIG = """
VERSION: 2
MODEL:
  META_ARCHITECTURE: DFormer
  DEVICE: cpu
  NUM_CLASSES: 133
  SIZE_DIVISIBILITY: 256
  BACKBONE: {NAME: build_timm_backbone}
  TIMM: {NAME: regnetx_002}
  PIXEL_DECODER: {CONV_DIM: 64, MASK_DIM: 64, NUM_LAYERS: 2, FFN_DIM: 256}
  MASK_DECODER: {NUM_QUERIES: 20, HIDDEN_DIM: 64, FFN_DIM: 256, NUM_LAYERS: 3}
  CRITERION: {CLASS_WEIGHT: 10.0, NUM_POINTS: 1024}
DATALOADER: {NUM_WORKERS: 0, ASPECT_RATIO_GROUPING: False}  # all eight in each batch
INPUT:
  AUGMENTATION: resize
  MIN_SIZE_TRAIN: [192]
  MAX_SIZE_TRAIN: 256
  MIN_SIZE_TEST: 192
  MAX_SIZE_TEST: 256
  RANDOM_FLIP: none
SOLVER:
  IMS_PER_BATCH: 8
  MAX_ITER: 450
  BASE_LR: 0.001
  BACKBONE_MULTIPLIER: 1.0
  LR_SCHEDULER_NAME: WarmupPolyLR
  WARMUP_FACTOR: 0.01
  WARMUP_ITERS: 100
  CLIP_GRADIENTS: {CLIP_VALUE: 0.1}
TEST:
  TASKS: [panoptic]
  EVAL_PERIOD: 50
  OBJECT_THRESHOLD: 0.5
SEED: 0
"""


@pytest.fixture(autouse=True)
def loggers():
    with own_loggers():
        yield


@pytest.fixture
def eight_images(data_dir, tmp_path):
    """The data set NAME: the first eight training images, by id, of 3 to 8 segments, none of them a crowd."""
    coco = data_dir / "coco_panoptic/coco"
    panoptic = json.loads((coco / "annotations/panoptic_train2017.json").read_text())
    instances = json.loads((coco / "annotations/instances_train2017.json").read_text())
    chosen = sorted(a["image_id"] for a in panoptic["annotations"] if is_moderate(a["segments_info"]))[:8]
    for name, content in (("panoptic", panoptic), ("instances", instances)):
        subset = content | {
            "images": [image for image in content["images"] if image["id"] in chosen],
            "annotations": [a for a in content["annotations"] if a["image_id"] in chosen],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(subset))
    full = MetadataCatalog.get("coco_2017_train_panoptic")
    metadata = {
        "thing_classes": full.thing_classes,
        "stuff_classes": full.stuff_classes,
        "thing_dataset_id_to_contiguous_id": full.thing_dataset_id_to_contiguous_id,
        "stuff_dataset_id_to_contiguous_id": full.stuff_dataset_id_to_contiguous_id,
    }
    images, maps = str(coco / "train2017"), str(coco / "panoptic_train2017")
    register_coco_panoptic(
        NAME, metadata, images, maps, str(tmp_path / "panoptic.json"), str(tmp_path / "instances.json")
    )
    yield NAME
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def is_moderate(segments: list[dict]) -> bool:
    return 3 <= len(segments) <= 8 and not any(segment["iscrowd"] for segment in segments)


@pytest.mark.slow
def test_eight_images_are_learned_by_heart(eight_images, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    cfg = get_cfg()
    merge_config(cfg, str(config), [])
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (eight_images,)
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    check(cfg)
    run(cfg)
    assert json.loads((tmp_path / "output/results.json").read_text())["PQ"] >= 80
