"""A trained model on images and videos of the user: pictures, videos, and the segments as JSON."""

from dformer.apps.demo.run import Settings, segment_files

__all__ = ["Settings", "segment_files"]
