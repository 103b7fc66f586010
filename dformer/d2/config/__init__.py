"""Config keys, their defaults, and how YAML files and overrides are merged."""

from dformer.d2.config.defaults import add_dformer_config, get_cfg, register_keys
from dformer.d2.config.merge import config_text, merge_config, merge_text, read_yaml

__all__ = ["add_dformer_config", "config_text", "get_cfg", "merge_config", "merge_text", "read_yaml", "register_keys"]
