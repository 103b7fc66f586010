"""Config keys of DiffusionInst."""

import math

from detectron2.config import CfgNode as CN


def add_diffusioninst_config(cfg: CN) -> None:
    """Add DiffusionInst's keys, with the published values, to `cfg` in place."""
    # Boxes -> classes, boxes and mask heads, stage by stage.
    cfg.MODEL.ROI_DECODER = CN()
    cfg.MODEL.ROI_DECODER.NUM_PROPOSALS = 500  # noisy boxes; inference may take another number
    cfg.MODEL.ROI_DECODER.NUM_STAGES = 6
    cfg.MODEL.ROI_DECODER.HIDDEN_DIM = 256  # also channels of the feature pyramid
    cfg.MODEL.ROI_DECODER.NUM_HEADS = 8
    cfg.MODEL.ROI_DECODER.FFN_DIM = 2048
    cfg.MODEL.ROI_DECODER.DYNAMIC_DIM = 64  # inner channels of the layers whose weights a box predicts

    # Feature pyramid -> what mask heads read.
    cfg.MODEL.MASK_BRANCH = CN()
    cfg.MODEL.MASK_BRANCH.DIM = 128
    cfg.MODEL.MASK_BRANCH.CHANNELS = 8  # a mask head has 2 C^2 + 3 C + 1 weights
    cfg.MODEL.MASK_BRANCH.NUM_CONVS = 4
    cfg.MODEL.MASK_BRANCH.NORM = "BN"  # or "GN", for few images a process

    # Matching and loss.
    cfg.MODEL.BOX_CRITERION = CN()
    cfg.MODEL.BOX_CRITERION.CLASS_WEIGHT = 2.0
    cfg.MODEL.BOX_CRITERION.L1_WEIGHT = 5.0
    cfg.MODEL.BOX_CRITERION.GIOU_WEIGHT = 2.0
    cfg.MODEL.BOX_CRITERION.DICE_WEIGHT = 5.0
    # Classes that count in a step's classification loss: those of the batch and others, drawn by the square root of
    # the number of training images that have them (LVIS, whose images are annotated for some classes only). 0: all.
    cfg.MODEL.BOX_CRITERION.FEDERATED_CLASSES = 0
    cfg.MODEL.BOX_CRITERION.CLASS_IMAGES = ()  # these numbers; training counts them, and writes them into its config

    cfg.DIFFUSION.BOX_RENEWAL = 0.5  # boxes of at most this score are drawn anew before the next sampling step
    cfg.TEST.NMS_THRESHOLD = 0.5  # of an object's detections, one is kept: IoU of the boxes, by class
    # With several sampling steps, run the last one and count its detections, too. (The published code leaves them out.)
    cfg.TEST.ENSEMBLE_LAST_STEP = False


def num_objects(cfg: CN) -> float:
    """Return how many objects of an image the model of a cfg can find; in tiles, any number."""
    if cfg.TEST.TILE:
        return math.inf
    is_ours = cfg.MODEL.META_ARCHITECTURE == "DiffusionInst"
    return cfg.MODEL.ROI_DECODER.NUM_PROPOSALS if is_ours else cfg.MODEL.MASK_DECODER.NUM_QUERIES


# Ranges, as in `dformer.d2.config.defaults`.
DIFFUSIONINST_RANGES: dict[str, tuple[float, float]] = {
    "MODEL.ROI_DECODER.NUM_PROPOSALS": (1, 2_000),
    "MODEL.ROI_DECODER.NUM_STAGES": (1, 100),
    "MODEL.ROI_DECODER.HIDDEN_DIM": (4, 8192),
    "MODEL.ROI_DECODER.NUM_HEADS": (1, 256),
    "MODEL.ROI_DECODER.DYNAMIC_DIM": (1, 8192),
    "MODEL.MASK_BRANCH.DIM": (1, 8192),
    "MODEL.MASK_BRANCH.CHANNELS": (1, 256),
    "MODEL.MASK_BRANCH.NUM_CONVS": (0, 100),
    "MODEL.BOX_CRITERION.FEDERATED_CLASSES": (0, 100_000),
    "DIFFUSION.BOX_RENEWAL": (0, 1),
    "TEST.NMS_THRESHOLD": (0, 1),
}
