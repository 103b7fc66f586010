"""Config keys that dformer adds to Detectron2's, with their defaults and meanings.

Keys of Detectron2 keep their meaning: `MODEL.RESNETS`, `DATASETS`, `DATALOADER`, `SOLVER`, `INPUT.MIN_SIZE_TEST`, ...
"""

from collections.abc import Callable

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg as get_detectron2_cfg

from dformer.d2.config.diffusioninst import DIFFUSIONINST_RANGES, add_diffusioninst_config
from dformer.d2.config.ldmseg import add_ldmseg_config
from dformer.d2.config.pix2seqd import PIX2SEQD_RANGES, add_pix2seqd_config

_registered: list[Callable[[CN], None]] = []


def register_keys(function: Callable[[CN], None]) -> Callable[[CN], None]:
    """Register a function that adds a meta-architecture's own keys to each cfg of `get_cfg`, and return it.

    Use it as a decorator in the module that registers the meta-architecture, imported before `get_cfg` is called. The
    cfg already has dformer's keys::

        @register_keys
        def add_keys(cfg: CfgNode) -> None:
            cfg.MODEL.MY_HEAD = CfgNode({"HIDDEN_DIM": 64})
    """
    _registered.append(function)
    return function


def get_cfg() -> CN:
    """Return Detectron2's default config with dformer's keys and those of `register_keys`."""
    cfg = get_detectron2_cfg()
    add_dformer_config(cfg)
    return cfg


def add_dformer_config(cfg: CN) -> None:
    """Add dformer's keys, and then those of `register_keys`, to `cfg` in place."""
    # Deterministic operations. On CPUs, a resumed run then equals an uninterrupted one bit for bit.
    cfg.DETERMINISTIC = False
    cfg.COLLECTIVE_TIMEOUT = 30.0  # minutes that a process waits for the others before the run fails

    cfg.MODEL.META_ARCHITECTURE = "DFormer"  # or "Mask2Former", "DiffusionInst", "Pix2SeqD"
    cfg.MODEL.NUM_CLASSES = 0  # things and stuff together; 0: as many as the first training data set has
    # Class names, and the ids of things. Empty: of the first training data set. Training writes them into config.yaml
    # and checkpoints, which can then be used without the data set.
    cfg.MODEL.CLASSES = ()
    cfg.MODEL.THINGS = ()
    # MODEL.WEIGHTS is a file, detectron2://..., https://..., timm://<pretrained model> or dformer://<shipped model>:
    # our checkpoints, published ones of DFormer and Mask2Former, or ImageNet backbones. False: load what fits and log
    # the rest.
    cfg.MODEL.WEIGHTS_STRICT = True
    # Decay of a moving average of the weights, which is saved with them and evaluated in their place; 0: none. 0.9999
    # averages over about 10,000 steps.
    cfg.MODEL.EMA_DECAY = 0.0
    cfg.MODEL.PIXEL_MEAN = [123.675, 116.28, 103.53]  # of ImageNet, RGB, 0..255
    cfg.MODEL.PIXEL_STD = [58.395, 57.12, 57.375]
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.SIZE_DIVISIBILITY = 32  # images are padded to multiples of this, the largest stride of the pyramid

    # Any timm model with `features_only`, for MODEL.BACKBONE.NAME "build_timm_backbone"; or a plain vision transformer
    # (DINOv2, DINOv3, SigLIP, MAE), for "build_timm_vit_backbone".
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = "swin_tiny_patch4_window7_224"
    cfg.MODEL.TIMM.DROP_PATH_RATE = 0.0  # stochastic depth, also for ResNets
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]  # stages after the last of these are not built

    cfg.MODEL.TIMM.PYRAMID_DIM = 256  # channels of the pyramid over a plain vision transformer
    cfg.MODEL.TIMM.FROZEN = False  # a plain vision transformer is not trained, only the pyramid

    # Backbone features -> pyramid of strides 32, 16, 8 and a pixel embedding of stride 4.
    cfg.MODEL.PIXEL_DECODER = CN()
    cfg.MODEL.PIXEL_DECODER.NAME = "MSDeformAttnPixelDecoder"  # or "FPNPixelDecoder"
    cfg.MODEL.PIXEL_DECODER.CONV_DIM = 256  # channels of the pyramid
    cfg.MODEL.PIXEL_DECODER.MASK_DIM = 256  # channels of the pixel embedding
    cfg.MODEL.PIXEL_DECODER.NUM_LAYERS = 6  # deformable encoder layers
    cfg.MODEL.PIXEL_DECODER.NUM_HEADS = 8
    cfg.MODEL.PIXEL_DECODER.NUM_POINTS = 4  # sampling points a head and level
    cfg.MODEL.PIXEL_DECODER.FFN_DIM = 1024

    # Masked-attention decoder of DFormer and Mask2Former.
    cfg.MODEL.MASK_DECODER = CN()
    cfg.MODEL.MASK_DECODER.NUM_QUERIES = 100  # masks: noisy ones (DFormer) or learned queries (Mask2Former)
    cfg.MODEL.MASK_DECODER.HIDDEN_DIM = 256
    cfg.MODEL.MASK_DECODER.NUM_HEADS = 8
    cfg.MODEL.MASK_DECODER.FFN_DIM = 2048
    cfg.MODEL.MASK_DECODER.NUM_LAYERS = 9  # the published configs count one more: DEC_LAYERS 10

    # Matching and loss.
    cfg.MODEL.CRITERION = CN()
    cfg.MODEL.CRITERION.CLASS_WEIGHT = 2.0
    cfg.MODEL.CRITERION.CLASS_COST = 2.0  # of the class in the matching; those of masks are their weights
    cfg.MODEL.CRITERION.CLASS_WEIGHTS = ()  # of each class in the cross-entropy, by class id; empty: 1 each
    cfg.MODEL.CRITERION.MASK_WEIGHT = 5.0
    cfg.MODEL.CRITERION.DICE_WEIGHT = 5.0
    cfg.MODEL.CRITERION.NO_OBJECT_WEIGHT = 0.1  # of the class "no object" in the cross-entropy
    cfg.MODEL.CRITERION.NUM_POINTS = 12544  # points per mask for matching and mask losses
    cfg.MODEL.CRITERION.OVERSAMPLE_RATIO = 3.0  # candidates per point; the uncertain ones are kept
    cfg.MODEL.CRITERION.IMPORTANCE_SAMPLE_RATIO = 0.75  # share of points chosen by uncertainty

    # Tracking branch of DFormer and Mask2Former, for videos (docs/video.md): an embedding of each query, trained on
    # several frames of a clip (INPUT.SAMPLING_FRAME_NUM). Weights as in QDTrack.
    cfg.MODEL.TRACKING_BRANCH = CN()
    cfg.MODEL.TRACKING_BRANCH.EMBED_DIM = 0  # 0: no branch
    cfg.MODEL.TRACKING_BRANCH.WEIGHT = 0.25
    cfg.MODEL.TRACKING_BRANCH.AUX_WEIGHT = 1.0

    # The diffusion process over masks.
    cfg.DIFFUSION = CN()
    cfg.DIFFUSION.TIMESTEPS = 1000  # T
    # "cosine", "linear" or "scaled_linear"; of Pix2SeqD those of dformer/diffusion/continuous.py
    cfg.DIFFUSION.SCHEDULE = "cosine"
    cfg.DIFFUSION.SIGNAL_SCALE = 0.1  # b: masks {0, 1} become {-b, b}; DiffusionInst's boxes have 2.0
    # What a slot answers with in training: any mask ("free", as published), or the one it was noised from ("denoising",
    # docs/systems/dformer.md).
    cfg.DIFFUSION.ASSIGNMENT = "free"
    cfg.DIFFUSION.ENCODING = "binary"  # or "random": inside from [0.5, 1], outside from [0, 0.5]
    cfg.DIFFUSION.MASK_STRIDE = 4  # image pixels per noise pixel; 1 as published
    cfg.DIFFUSION.SAMPLING_STEPS = 1
    cfg.DIFFUSION.ETA = 1.0  # 0: DDIM, deterministic after the first noise; 1: DDPM
    cfg.DIFFUSION.SEED = 0  # of the noise at inference

    # Custom data sets for TRAIN and TEST: `{name: {form: ..., images: ..., annotations: ...}}`, or YAML files of such
    # declarations (datasets/README.md).
    cfg.DATASETS.CUSTOM = ()
    # Images of each data set to check before the first step (`dformer check` checks all). 0: no check.
    cfg.DATASETS.CHECK_IMAGES = 200

    # Unreadable images or annotations that each training process may replace by others; one more stops training.
    # Evaluation stops at the first.
    cfg.DATALOADER.MAX_UNREADABLE = 10

    cfg.INPUT.FORMAT = "RGB"
    cfg.INPUT.TASK = "panoptic"  # training targets: "panoptic", "instance" or "semantic"
    # What the mapper delivers of the annotation. "masks": `instances` with gt_classes and gt_masks; "boxes": gt_boxes
    # beside them; "panoptic_map": `panoptic_map` int64 (h, w), 0 where nothing is annotated and k + 1 in object k of
    # `instances.gt_classes`, instead of gt_masks.
    cfg.INPUT.TARGET = "masks"
    # Frames of a clip that a training batch has together, at most SAMPLING_FRAME_RANGE frames from the first; batches
    # are still counted in images. 1: frames are drawn alone.
    cfg.INPUT.SAMPLING_FRAME_NUM = 1
    cfg.INPUT.SAMPLING_FRAME_RANGE = 20
    # "lsj": large-scale jitter, scaled by MIN_SCALE..MAX_SCALE of IMAGE_SIZE, then cropped or padded to that square;
    # "native": the same, but scaled by MIN_SCALE..MAX_SCALE of the image's own size, and in tests by SCALE_TEST;
    # "crop": short side from MIN_SIZE_TRAIN, then a crop of CROP.SIZE (as for ADE20K); "resize": short side only;
    # "detr": half of the images are cropped to 384..600 pixels a side first, then "resize"; "square":
    # IMAGE_SIZE x IMAGE_SIZE whatever the aspect, in tests too (as LDMSeg).
    cfg.INPUT.AUGMENTATION = "lsj"
    cfg.INPUT.IMAGE_SIZE = 1024
    cfg.INPUT.MIN_SCALE = 0.1
    cfg.INPUT.MAX_SCALE = 2.0
    cfg.INPUT.SCALE_TEST = 1.0
    # INPUT.RANDOM_FLIP is "horizontal", "vertical", "none", or "rotate": quarter turns and mirrored, for images
    # without an up and down.
    cfg.INPUT.COLOR_AUG_SSD = False  # brightness, contrast, saturation and hue, as in SSD
    # "crop": a crop is drawn again while one category covers more than this share of it.
    cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA = 1.0

    # Solver.
    cfg.SOLVER.OPTIMIZER = "ADAMW"  # or "SGD"
    cfg.SOLVER.BASE_LR = 1e-4
    cfg.SOLVER.WEIGHT_DECAY = 0.05
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.0
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.1  # learning rate of the backbone / BASE_LR
    # Learning rate of each layer of a plain vision transformer / that of the layer after it; 1: the same for all.
    cfg.SOLVER.LAYER_DECAY = 1.0
    # "WarmupMultiStepLR" (SOLVER.STEPS, GAMMA), or to BASE_LR_END at MAX_ITER "WarmupCosineLR" or "WarmupPolyLR"
    # (POLY_POWER)
    cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupMultiStepLR"
    cfg.SOLVER.POLY_POWER = 0.9
    cfg.SOLVER.BASE_LR_END = 0.0
    cfg.SOLVER.WARMUP_FACTOR = 1.0
    cfg.SOLVER.WARMUP_ITERS = 10
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"  # norm of all gradients together
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 0.01
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = 2.0
    # torch.compile of backbone and decoders in training; the first steps then take minutes (docs/performance.md).
    cfg.SOLVER.COMPILE = False
    cfg.SOLVER.CHECKPOINT_KEEP = 3  # periodic checkpoints that are kept, the newest; 0: all
    # A step's IMS_PER_BATCH images are computed in so many parts, one after the other, with the gradients of all
    # together: less memory, for a further forward (docs/performance.md).
    cfg.SOLVER.ACCUMULATE = 1
    cfg.SOLVER.ACTIVATION_CHECKPOINTING = False  # less memory, for a second forward of each block of the model
    cfg.SOLVER.AMP.DTYPE = "float16"  # or "bfloat16", which needs no loss scaling

    # Every VIS_PERIOD steps (Detectron2, 0: never), TensorBoard gets pictures of two images of the test set, or of the
    # training set: annotated, masks with noise, predicted.

    # Experiment trackers that get the numbers of metrics.json, too: "wandb", "mlflow"; and the project of the run.
    cfg.TRACKING = CN()
    cfg.TRACKING.WRITERS = ()
    cfg.TRACKING.PROJECT = "dformer"

    # Inference and evaluation.
    cfg.TEST.AMP = CN()
    cfg.TEST.AMP.ENABLED = False  # in the type of SOLVER.AMP.DTYPE; False: in float32, as published
    cfg.TEST.TASKS = ("panoptic", "instance", "semantic")  # results to compute and, if annotated, evaluate
    # Semantic scores: True: masks are resized to the result, then weighted by their classes; False: weighted at the
    # size of the model's input, then resized (published for semantic segmentation; the name is the published one).
    cfg.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE = True
    cfg.TEST.OBJECT_THRESHOLD = 0.8  # panoptic: masks with a lower class score are dropped
    cfg.TEST.OVERLAP_THRESHOLD = 0.8  # panoptic: masks with a smaller visible share are dropped
    # Segments of fewer pixels, in the result, are dropped: by Pix2SeqD (80 in COCO's images) and LDMSeg (512).
    cfg.TEST.MIN_AREA = 0
    # Images larger than TILE x TILE pixels, as the model gets them, are cut into such tiles, TILE_OVERLAP or more
    # pixels of which overlap; their results are merged. 0: no tiles.
    cfg.TEST.TILE = 0
    cfg.TEST.TILE_OVERLAP = 64
    # How objects are followed through videos: "association", "queries", "hints" or "past_maps" (docs/video.md).
    cfg.TEST.TRACKER = "association"
    # Metric on the first of DATASETS.TEST that chooses model_best.pth with EVAL_PERIOD: PQ, PQ_things, PQ_stuff,
    # PQ_agnostic, AP or mIoU. Empty: PQ, PQ_agnostic, AP or mIoU, the first that is measured.
    cfg.TEST.BEST_METRIC = ""
    # Evaluations (EVAL_PERIOD) without a better BEST_METRIC after which training ends; 0: it never ends early.
    cfg.TEST.PATIENCE = 0
    cfg.TEST.BOUNDARY = False  # also boundary AP and boundary IoU
    cfg.TEST.CLASS_AGNOSTIC = False  # also class-agnostic PQ
    # Detectron2's TEST.AUG (MIN_SIZES, MAX_SIZE, FLIP) averages class scores, for semantic segmentation only.

    add_diffusioninst_config(cfg)
    add_pix2seqd_config(cfg)
    add_ldmseg_config(cfg)
    for add_keys in _registered:
        add_keys(cfg)


# Ranges of the numbers that would otherwise fail late, obscurely or by taking all memory.
RANGES: dict[str, tuple[float, float]] = {
    "MODEL.NUM_CLASSES": (0, 100_000),
    "MODEL.SIZE_DIVISIBILITY": (1, 1024),
    "MODEL.PIXEL_DECODER.CONV_DIM": (32, 8192),
    "MODEL.PIXEL_DECODER.NUM_LAYERS": (0, 100),
    "MODEL.PIXEL_DECODER.NUM_HEADS": (1, 256),
    "MODEL.MASK_DECODER.NUM_QUERIES": (1, 10_000),
    "MODEL.MASK_DECODER.HIDDEN_DIM": (4, 8192),
    "MODEL.MASK_DECODER.NUM_HEADS": (1, 256),
    "MODEL.MASK_DECODER.NUM_LAYERS": (1, 100),
    "MODEL.CRITERION.NO_OBJECT_WEIGHT": (1e-6, 1e6),
    "MODEL.CRITERION.NUM_POINTS": (1, 10_000_000),
    "MODEL.CRITERION.OVERSAMPLE_RATIO": (1, 100),
    "MODEL.CRITERION.IMPORTANCE_SAMPLE_RATIO": (0, 1),
    "MODEL.TRACKING_BRANCH.EMBED_DIM": (0, 8192),
    "DIFFUSION.TIMESTEPS": (1, 1_000_000),
    "DIFFUSION.SIGNAL_SCALE": (1e-6, 1e6),
    "DIFFUSION.MASK_STRIDE": (1, 64),
    "DIFFUSION.ETA": (0, 1),
    "INPUT.IMAGE_SIZE": (1, 16384),
    "INPUT.SAMPLING_FRAME_NUM": (1, 100),
    "INPUT.SAMPLING_FRAME_RANGE": (1, 1_000_000),
    "INPUT.MIN_SCALE": (1e-3, 100),
    "INPUT.MAX_SCALE": (1e-3, 100),
    "INPUT.SCALE_TEST": (1e-3, 100),
    "SOLVER.IMS_PER_BATCH": (1, 1_000_000),
    "SOLVER.ACCUMULATE": (1, 1_000_000),
    "SOLVER.LAYER_DECAY": (1e-3, 1),
    "SOLVER.MAX_ITER": (0, 1e12),
    "SOLVER.CHECKPOINT_PERIOD": (1, 1e12),
    "TEST.OBJECT_THRESHOLD": (0, 1),
    "TEST.OVERLAP_THRESHOLD": (0, 1),
    "TEST.DETECTIONS_PER_IMAGE": (1, 1_000_000),
    "TEST.MIN_AREA": (0, 1e9),
    "TEST.PATIENCE": (0, 1e9),
    "TEST.TILE": (0, 16384),
    "TEST.TILE_OVERLAP": (0, 16384),
    **DIFFUSIONINST_RANGES,
    **PIX2SEQD_RANGES,
}
