"""Types of records and metadata, which are Detectron2's, without importing it."""

from collections.abc import Mapping
from typing import Any, Protocol

Record = Mapping[str, Any]  # one image in Detectron2's standard data set format
Size = tuple[int, int]  # height, width


class Metadata(Protocol):
    """Describe a data set: its name, classes and folders, as Detectron2's `Metadata` does."""

    name: str

    def get(self, key: str, default: Any = None) -> Any:
        """Return an attribute, or `default` where there is none."""

    def __getattr__(self, key: str) -> Any: ...


class Transforms(Protocol):
    """Apply the geometry of an augmentation, as Detectron2's `TransformList` does."""

    def apply_coords(self, coords: Any) -> Any:
        """Return the transformed points (N, 2), x and y in pixels."""

    def apply_segmentation(self, segmentation: Any) -> Any:
        """Return the transformed label picture, by nearest neighbours."""
