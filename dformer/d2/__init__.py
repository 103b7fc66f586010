"""The adapter to Detectron2: importing it registers backbones, meta-architectures and data sets."""

from dformer.d2 import data, modeling
from dformer.d2.config import add_dformer_config, get_cfg, merge_config

__all__ = ["add_dformer_config", "data", "get_cfg", "merge_config", "modeling"]
