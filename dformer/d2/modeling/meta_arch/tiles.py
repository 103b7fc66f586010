"""Inference in tiles: one tile at a time, whose results are merged to those of the image."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from detectron2.structures import Boxes, Instances

from dformer.d2.modeling.meta_arch.step import Output, Request, Step
from dformer.postprocess.queries import InstanceResult
from dformer.postprocess.tiles import InstanceMosaic, PanopticMosaic, SemanticMosaic, Tile, tiles
from dformer.postprocess.view import View
from dformer.utils.errors import UserError

if TYPE_CHECKING:
    from dformer.d2.modeling.meta_arch.segmenter import Segmenter


def segment_in_tiles(model: "Segmenter", batch: list[dict[str, Any]], request: Request) -> Step:
    """Return a step with the results of a batch, each merged from the last steps of an image's tiles."""
    outputs, views, of_tile = [], [], replace(request, tile=0)
    for item in batch:
        if "known_map" in item:
            raise UserError("tile (TEST.TILE): masks are completed in a whole image only; set it to 0")
        image = item["image"].shape[1], item["image"].shape[2]
        size = item.get("height", image[0]), item.get("width", image[1])
        output = TiledOutput(model, request, size)
        for tile in tiles(image, size, request.tile, request.tile_overlap):
            (rows, columns), (y, x) = tile.place, tile.crop
            shape = {"height": rows.stop - rows.start, "width": columns.stop - columns.start}
            for step in model.steps([{"image": item["image"][:, y, x], **shape}], of_tile):  # noqa: B007
                pass
            output.add(tile, step.results[0])
        outputs.append(output)
        views.append(View(image, image, size))
    return Step(step.t, outputs, views)


class TiledOutput(Output):
    """Merge the results of an image's tiles, on the CPU."""

    def __init__(self, model: "Segmenter", request: Request, size: tuple[int, int]) -> None:
        self.panoptic = PanopticMosaic(size) if "panoptic" in request.tasks else None
        self.instances = InstanceMosaic(size, model.max_objects) if "instance" in request.tasks else None
        self.semantic = SemanticMosaic(size) if "semantic" in request.tasks else None

    def add(self, tile: Tile, result: dict[str, Any]) -> None:
        """Add a tile's results."""
        if self.panoptic:
            self.panoptic.add(tile, result["panoptic_seg"])
        if self.semantic:
            self.semantic.add(tile, result["sem_seg"])
        if self.instances:
            found = result["instances"]
            fields = found.pred_masks, found.pred_boxes.tensor, found.scores, found.pred_classes
            self.instances.add(tile, InstanceResult(*(x.cpu() for x in fields)))

    def result(self, view: View) -> dict[str, Any]:
        """Return the merged results."""
        result: dict[str, Any] = {}
        if self.panoptic:
            result["panoptic_seg"] = self.panoptic.result()
        if self.semantic:
            result["sem_seg"] = self.semantic.result()
        if self.instances:
            masks, boxes, scores, classes = self.instances.result()
            fields = {"pred_masks": masks, "pred_boxes": Boxes(boxes), "scores": scores, "pred_classes": classes}
            result["instances"] = Instances(view.size, **fields)
        return result
