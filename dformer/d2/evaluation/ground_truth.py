"""Annotations that predictions are compared with."""

from pathlib import Path
from typing import Any

from dformer.utils.errors import UserError
from dformer.utils.files import read_json


class PanopticGroundTruth:
    """Panoptic annotations of a data set, as its json and PNG files have them: dataset category ids, 0 is void.

    Attributes:
        json_file: COCO panoptic json.
        png_root: folder of the PNGs of segment ids.
        categories: dataset category id -> {"id", "name", "isthing", ...}.
    """

    def __init__(self, json_file: Path, png_root: Path) -> None:
        content = read_json(json_file)
        self.json_file = json_file
        self.png_root = png_root
        self.categories: dict[int, dict[str, Any]] = {c["id"]: c for c in content["categories"]}
        self._annotations: dict[int | str, dict[str, Any]] = {a["image_id"]: a for a in content["annotations"]}

    def __getitem__(self, image_id: int | str) -> dict[str, Any]:
        """The annotation of an image: {"image_id", "file_name" of the PNG, "segments_info"}.

        Raises:
            UserError: the image is not annotated.
        """
        if image_id not in self._annotations:
            raise UserError(
                f"{self.json_file} has no annotation for the image with id {image_id!r}; add it or leave the image out"
            )
        return self._annotations[image_id]

    def png_file(self, annotation: dict[str, Any]) -> Path:
        """The file of segment ids of an annotation."""
        return self.png_root / annotation["file_name"]
