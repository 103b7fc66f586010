"""Inspections of registered data sets."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from detectron2.data import MetadataCatalog

from dformer.d2.data.datasets import available_tasks, get_metadata, get_records, has_classes
from dformer.data.checks.inspection import Inspection, Loaded, compare, inspect
from dformer.utils.errors import UserError


def inspect_datasets(
    training: Sequence[str],
    testing: Sequence[str] = (),
    queries: int = 100,
    limit: int | None = None,
    progress: bool = True,
    workers: int | None = None,
) -> list[Inspection]:
    """Inspect data sets, and compare the first of the training sets with all that are annotated for the same.

    Args:
        training: names of data sets to train on.
        testing: names of data sets to test on; none of their images should be trained on.
        queries, limit, progress, workers: as `dformer.data.checks.inspection.inspect` has them.

    Raises:
        UserError: a data set is not registered.
    """
    found = []
    for name in dict.fromkeys([*training, *testing]):
        has_classes(name)  # raises for an unknown name
        found.append(inspect(name, _json_files(name), partial(_load, name), queries, limit, progress, workers))
    for other in found[1:]:
        compare(found[0], other, other.name in testing)
    return found


def _load(name: str) -> Loaded:
    records, available = get_records(name), available_tasks(name)
    for task in ("panoptic", "semantic", "instance"):
        if task in available:
            return records, task, get_metadata(name)
    raise UserError(f'data set "{name}" is annotated for no task that can be trained')


def _json_files(name: str) -> dict[str, str | Path]:
    """The COCO json files of a data set that is not necessarily loaded yet, by their format."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("declared"):
        source = metadata.declared[0]
        panoptic = source.annotations if source.form == "coco_panoptic" else None
        instances = source.annotations if source.form == "coco_instances" else source.instances
    else:
        panoptic, instances = metadata.get("panoptic_json"), metadata.get("json_file")
    if panoptic and instances and not Path(instances).exists():
        instances = None  # the instances of a panoptic set are for mask AP only
    return {kind: file for kind, file in (("panoptic", panoptic), ("instance", instances)) if file}
