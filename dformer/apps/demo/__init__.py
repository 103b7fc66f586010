"""The demo: a trained model on images and videos, with pictures, videos and JSON as results."""

from dformer.apps.demo.run import Settings, segment_files

__all__ = ["Settings", "segment_files"]
