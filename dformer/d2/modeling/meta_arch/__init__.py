"""Meta-architectures, registered with Detectron2 by their names."""

from dformer.d2.modeling.meta_arch.dformer import DFormer
from dformer.d2.modeling.meta_arch.diffusioninst import DiffusionInst
from dformer.d2.modeling.meta_arch.ldmseg import LDMSeg
from dformer.d2.modeling.meta_arch.mask2former import Mask2Former
from dformer.d2.modeling.meta_arch.mask_autoencoder import MaskAutoencoder
from dformer.d2.modeling.meta_arch.pix2seqd import Pix2SeqD
from dformer.d2.modeling.meta_arch.segmenter import Segmenter
from dformer.d2.modeling.meta_arch.step import Layer, Output, Request, Step

__all__ = [
    "DFormer",
    "DiffusionInst",
    "LDMSeg",
    "Layer",
    "Mask2Former",
    "MaskAutoencoder",
    "Output",
    "Pix2SeqD",
    "Request",
    "Segmenter",
    "Step",
]
