"""Backbones and meta-architectures, registered with Detectron2 by their names."""

from dformer.d2.modeling import backbones, meta_arch, vit

__all__ = ["backbones", "meta_arch", "vit"]
