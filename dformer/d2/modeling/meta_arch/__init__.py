"""Meta-architectures, registered with Detectron2 by their names."""

from dformer.d2.modeling.meta_arch.dformer import DFormer
from dformer.d2.modeling.meta_arch.mask2former import Mask2Former

__all__ = ["DFormer", "Mask2Former"]
