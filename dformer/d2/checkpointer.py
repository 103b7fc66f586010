"""Checkpoints as Detectron2 writes them, read without running what is in them."""

from typing import Any

from detectron2.checkpoint import DetectionCheckpointer

from dformer.checkpoint import read_checkpoint
from dformer.errors import UserError


class Checkpointer(DetectionCheckpointer):
    """Detectron2's checkpointer with `dformer.checkpoint` as its reader.

    `load` takes local files and what Detectron2's path manager knows (`detectron2://...`, `https://...`), logs
    parameters that are missing, left over or of another shape, and translates the names of the model zoos' backbones.

    Raises:
        UserError (in `load`): the file does not exist, is not a checkpoint, or holds no parameter of the model.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self._path = path
        if path and not self.path_manager.isfile(path) and "://" not in path:
            raise UserError(f"checkpoint {path} does not exist (MODEL.WEIGHTS, or last_checkpoint in OUTPUT_DIR)")
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_checkpoint(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        names = list(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        unloaded = {*incompatible.missing_keys, *(name for name, *_ in incompatible.incorrect_shapes)}
        parameters = [name for name, _ in self.model.named_parameters()]
        if unloaded.issuperset(parameters):
            raise UserError(
                f"{self._path} holds no parameter of this model: it has {', '.join(names[:3])}, ... and the model "
                f"{', '.join(parameters[:3])}, ... Is it the checkpoint of another model or config?"
            )
        return incompatible
