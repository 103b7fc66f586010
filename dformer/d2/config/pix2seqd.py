"""Config keys of Pix2Seq-D."""

from detectron2.config import CfgNode as CN


def add_pix2seqd_config(cfg: CN) -> None:
    """Add the keys of the meta-architecture "Pix2SeqD" to `cfg` in place. Defaults: as published, for COCO."""
    cfg.MODEL.PIX2SEQD = CN()
    # Image encoder: a transformer over the cells of the backbone's stride 16.
    cfg.MODEL.PIX2SEQD.ENCODER_DIM = 512  # channels of its tokens, and of the decoder's transformer
    cfg.MODEL.PIX2SEQD.ENCODER_LAYERS = 12
    cfg.MODEL.PIX2SEQD.ENCODER_HEADS = 16
    cfg.MODEL.PIX2SEQD.ENCODER_FFN_DIM = 2048
    cfg.MODEL.PIX2SEQD.ENCODER_DROPOUT = 0.1  # of the feed-forward blocks' hidden units
    cfg.MODEL.PIX2SEQD.ENCODER_DROP_PATH = 0.1  # probability that a block is skipped
    cfg.MODEL.PIX2SEQD.FUSE_DIM = 256  # channels of the image's map, if maps are finer than stride 4
    # Decoder: TransUNet.
    cfg.MODEL.PIX2SEQD.UNET_DIM = 128  # channels of the first level
    cfg.MODEL.PIX2SEQD.UNET_MULTIPLIERS = [1, 1, 2, 2]  # channels of each level / UNET_DIM
    cfg.MODEL.PIX2SEQD.UNET_BLOCKS = 1  # residual blocks a level
    cfg.MODEL.PIX2SEQD.DECODER_LAYERS = 6  # of the transformer in the middle
    cfg.MODEL.PIX2SEQD.DECODER_HEADS = 8
    # Factor on the noise level, in 0..1, before it is encoded by sines. No published config of Pix2Seq-D has a value;
    # the image generation of the same code takes 1000.
    cfg.MODEL.PIX2SEQD.TIME_SCALING = 1000.0
    # Side of the patches of pixels that become a cell of the decoder. 2 costs a quarter, at the same number of pixels;
    # 1 as published.
    cfg.MODEL.PIX2SEQD.PATCH_SIZE = 1
    # "softmax" over the values of the class and of the id, as published; "sigmoid" a bit, "x0" or "eps".
    cfg.MODEL.PIX2SEQD.PREDICTION = "softmax"
    # Bits of a class and of an id; both have 2^bits values, of which 0 is none.
    cfg.MODEL.PIX2SEQD.CLASS_BITS = 8
    cfg.MODEL.PIX2SEQD.ID_BITS = 8
    cfg.MODEL.PIX2SEQD.NUM_IDS = 101  # ids that are given, 0 among them; an image has at most one object less
    # Ids of the objects in training: "random" ones as published for COCO, "shuffle" (the lowest ones, in random order,
    # as published for Cityscapes and videos), or, not in the paper, "grid" (by the place of a thing's centre, and by
    # the class of stuff; random ones where a past map says them).
    cfg.MODEL.PIX2SEQD.ID_ORDER = "random"
    cfg.MODEL.PIX2SEQD.MASK_WEIGHT_POWER = 0.2  # pixels of an object of c pixels weigh (1 / (c + 1))^p in the loss
    cfg.MODEL.PIX2SEQD.NOISY_COPIES = 1  # noisy maps an encoded image, each at a time of its own
    # How classes and ids get to the size of the result: "nearest" as published, or "bilinear" on their probabilities.
    cfg.MODEL.PIX2SEQD.UPSAMPLING = "nearest"
    cfg.MODEL.PIX2SEQD.PAST_MAPS = 0  # maps of earlier frames that the decoder sees; 2 for videos
    cfg.MODEL.PIX2SEQD.PAST_DROPOUT = 0.2  # probability that a past map is left out in training

    cfg.DIFFUSION.TIME_DIFFERENCE = 0.0  # td: steps jump ahead by so many further steps, of Pix2SeqD only


# Ranges, as in `dformer.d2.config.defaults`.
PIX2SEQD_RANGES: dict[str, tuple[float, float]] = {
    "MODEL.PIX2SEQD.ENCODER_LAYERS": (0, 100),
    "MODEL.PIX2SEQD.DECODER_LAYERS": (0, 100),
    "MODEL.PIX2SEQD.UNET_BLOCKS": (1, 100),
    "MODEL.PIX2SEQD.PATCH_SIZE": (1, 16),
    "MODEL.PIX2SEQD.CLASS_BITS": (1, 16),
    "MODEL.PIX2SEQD.ID_BITS": (1, 16),
    "MODEL.PIX2SEQD.NUM_IDS": (2, 65536),
    "MODEL.PIX2SEQD.MASK_WEIGHT_POWER": (0, 1),
    "MODEL.PIX2SEQD.NOISY_COPIES": (1, 64),
    "MODEL.PIX2SEQD.PAST_MAPS": (0, 16),
    "MODEL.PIX2SEQD.PAST_DROPOUT": (0, 1),
    "DIFFUSION.TIME_DIFFERENCE": (0, 1000),
}
