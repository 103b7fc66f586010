"""Image segmentation by diffusion: DFormer and its siblings on Detectron2."""

__version__ = "0.1.0"
