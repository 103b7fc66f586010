"""Config keys of LDMSeg and of its mask autoencoder."""

from detectron2.config import CfgNode as CN


def add_ldmseg_config(cfg: CN) -> None:
    """Add the keys of the meta-architectures "MaskAutoencoder" and "LDMSeg" to `cfg` in place."""
    # The autoencoder of maps of ids (stage 1). Defaults: the published one.
    cfg.MODEL.MASK_AUTOENCODER = CN()
    # LDMSeg: the file of a trained MaskAutoencoder, or a published ae.pt. Training from the start needs it.
    cfg.MODEL.MASK_AUTOENCODER.WEIGHTS = ""
    cfg.MODEL.MASK_AUTOENCODER.NUM_BITS = 7  # n: an image has at most 2^n - 1 segments, with random ids
    cfg.MODEL.MASK_AUTOENCODER.CHANNELS = [32, 64, 128, 256]  # of the encoder; each but the first halves the map
    cfg.MODEL.MASK_AUTOENCODER.LATENT_CHANNELS = 4
    cfg.MODEL.MASK_AUTOENCODER.HIDDEN_CHANNELS = 256  # at the resolution of the latents
    cfg.MODEL.MASK_AUTOENCODER.UPSCALE_CHANNELS = 256  # of the decoder, where it enlarges
    cfg.MODEL.MASK_AUTOENCODER.UPSCALERS = 2  # how often the decoder doubles the map
    cfg.MODEL.MASK_AUTOENCODER.GROUPS = 32  # of group norms
    cfg.MODEL.MASK_AUTOENCODER.KL_WEIGHT = 0.0  # of the divergence from a normal distribution; 0 as published

    cfg.MODEL.LDMSEG = CN()
    # "backbone": MODEL.BACKBONE, trained; "stable_diffusion": its autoencoder, frozen, from IMAGE_WEIGHTS.
    cfg.MODEL.LDMSEG.IMAGE_ENCODER = "backbone"
    cfg.MODEL.LDMSEG.IMAGE_CHANNELS = 64  # of the image latents, for "backbone"
    # Files or folders of Stable Diffusion 1.4, local, to start from: of its autoencoder and of its U-Net. A folder has
    # `vae` and `unet`. Empty: none.
    cfg.MODEL.LDMSEG.IMAGE_WEIGHTS = ""
    cfg.MODEL.LDMSEG.UNET_WEIGHTS = ""
    cfg.MODEL.LDMSEG.UNET_CHANNELS = [320, 640, 1280, 1280]  # of each level; as Stable Diffusion 1.4 has it
    cfg.MODEL.LDMSEG.UNET_ATTENTION = [True, True, True, False]  # which levels have attention
    cfg.MODEL.LDMSEG.UNET_LAYERS = 2  # resnet blocks a level
    cfg.MODEL.LDMSEG.UNET_HEADS = 8
    cfg.MODEL.LDMSEG.UNET_GROUPS = 32
    cfg.MODEL.LDMSEG.FREEZE_TIME_EMBEDDING = False
    cfg.MODEL.LDMSEG.PREDICTION = "eps"  # or "x0"
    cfg.MODEL.LDMSEG.MAX_SNR = 2.0  # the loss is weighted by min(SNR, MAX_SNR) / SNR
    cfg.MODEL.LDMSEG.SELF_CONDITION = 1.0  # share of training images that are conditioned on a first prediction
    cfg.MODEL.LDMSEG.KNOWN_SHARE = 0.0  # share of training images of which parts are given; as published 0
    # Ids of the segments in training: "random" as published; not in the paper: "shuffle" (the lowest ones, at random),
    # "grid" (by the place of a thing's centre, and by the class of stuff).
    cfg.MODEL.LDMSEG.ID_ORDER = "random"
    # Weight of stage 1's losses on the predicted latents, decoded. Not in the paper, which has 0.
    cfg.MODEL.LDMSEG.PIXEL_WEIGHT = 0.0
    cfg.MODEL.LDMSEG.CLASS_WEIGHT = 1.0  # of the classifier of segments, which a model of one class does not have

    # Also give the model INPUT.TARGET of test images: MaskAutoencoder reconstructs it.
    cfg.TEST.WITH_TARGETS = False
