"""Inspections of registered data sets: all checks, reading each file once, on all cores."""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog

from dformer.d2.data.datasets import available_tasks, get_metadata, get_records, has_classes
from dformer.data.checks.coco_json import check_json
from dformer.data.checks.datasets import check_images, compare_classes, find_leaks
from dformer.data.checks.findings import FATAL, KINDS, LEVELS, CheckedImage, Finding
from dformer.data.checks.images import check_image
from dformer.data.checks.videos import check_videos
from dformer.data.types import Metadata
from dformer.utils.errors import UserError
from dformer.utils.files import read_json
from dformer.utils.memory import gc_paused
from dformer.utils.processes import parallel_map


@dataclass
class Inspection:
    """Hold what was found in a data set.

    Attributes:
        name: of the data set.
        task: "panoptic", "instance" or "semantic"; "" where it cannot be loaded.
        total: number of images.
        images: those that were checked.
        findings: faults and oddities.
        metadata: None where it cannot be loaded.
    """

    name: str
    task: str = ""
    total: int = 0
    images: list[CheckedImage] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    metadata: Metadata | None = None

    @property
    def fatal(self) -> list[Finding]:
        """Return the findings that keep training from starting."""
        return [f for f in self.findings if f.level == FATAL]

    def groups(self) -> list[list[Finding]]:
        """Group the findings by their kind; return the groups, the worst first."""
        kinds = sorted(dict.fromkeys(f.kind for f in self.findings), key=lambda kind: LEVELS.index(KINDS[kind][0]))
        return [[f for f in self.findings if f.kind == kind] for kind in kinds]


def inspect_datasets(
    training: Sequence[str],
    testing: Sequence[str] = (),
    queries: float = 100,
    limit: int | None = None,
    progress: bool = True,
    workers: int | None = None,
    instances: Container[str] | None = None,
) -> list[Inspection]:
    """Inspect data sets, and compare the first of the training sets with all that are annotated for the same.

    Args:
        training: names of data sets to train on.
        testing: names of data sets to test on; none of their images should be trained on.
        queries: of the model; images with more objects are reported.
        limit: check this number of images of each, evenly chosen; None: all.
        progress: show a progress bar.
        workers: processes; by default as many as there are cores.
        instances: the panoptic sets whose COCO instances json, which is for mask AP alone, is checked too; None: all.

    Raises:
        UserError: a data set is not registered. What else cannot be read is a finding.
    """
    found = []
    for name in dict.fromkeys([*training, *testing]):
        with_instances = instances is None or name in instances
        found.append(_inspect(name, name in training, with_instances, queries, limit, progress, workers))
    first = found[0]
    for other in found[1:]:
        if first.metadata and other.metadata and first.task == other.task:
            other.findings += compare_classes(first.metadata, other.metadata)
            if other.name in testing:
                other.findings += find_leaks(first.name, first.images, other.images)
    return found


def _inspect(
    name: str,
    is_trained: bool,
    instances: bool,
    queries: float,
    limit: int | None,
    progress: bool,
    workers: int | None,
) -> Inspection:
    """Inspect the json files first, then, if they have no fatal fault, the rest."""
    inspection = Inspection(name)
    sizes: dict[Any, dict[str, int]] = {}
    for form, file in _json_files(name, instances).items():  # one after the other in memory
        with gc_paused():
            try:
                content = read_json(file)
                inspection.findings += check_json(content, str(file), form)
            except UserError as error:
                inspection.findings.append(Finding("json unreadable", str(file), str(error)))
            else:
                if form == "panoptic" and not inspection.fatal:  # Detectron2's records of panoptic sets have no sizes
                    sizes = {i["id"]: {"height": i["height"], "width": i["width"]} for i in content["images"]}
                del content
    if inspection.fatal:  # what the json says cannot be relied on
        return inspection
    try:
        records, metadata, available = get_records(name), get_metadata(name), available_tasks(name)
        if not available:
            raise UserError("it is annotated for no task that can be trained")
    except UserError as error:
        inspection.findings.append(Finding("cannot be loaded", name, str(error)))
        return inspection
    if records and "video_id" in records[0]:
        inspection.findings += check_videos(records, limit, workers)
    task = next(task for task in ("panoptic", "semantic", "instance") if task in available)
    inspection.task, inspection.total, inspection.metadata = task, len(records), metadata
    if limit is not None and limit < len(records):
        records = [records[i] for i in np.linspace(0, len(records) - 1, limit).round().astype(int)]
    void = metadata.get("ignore_label", 255)
    defaults: dict[str, Any] = {}
    if task == "semantic":
        defaults["label_map"] = {k: k for k in (void, *range(len(metadata.stuff_classes)))}
    records = [{**sizes.get(r.get("image_id"), {}), **defaults, **r} for r in records]
    check = partial(check_image, task=task, ignore_label=void)
    inspection.images = parallel_map(check, records, name if progress else None, workers)
    inspection.findings += [f for image in inspection.images for f in image.findings]
    inspection.findings += check_images(inspection.images, metadata, queries, inspection.total, is_trained)
    return inspection


def _json_files(name: str, with_instances: bool) -> dict[str, str | Path]:
    """The COCO json files of a data set that is not necessarily loaded yet, by their form.

    Those of a panoptic set's instances only `with_instances`.

    Raises:
        UserError: the data set is not registered.
    """
    has_classes(name)
    metadata = MetadataCatalog.get(name)
    if metadata.get("declared"):
        source = metadata.declared[0]
        panoptic = source.annotations if source.form == "coco_panoptic" else None
        instances = source.annotations if source.form == "coco_instances" else source.instances
    else:
        panoptic, instances = metadata.get("panoptic_json"), metadata.get("json_file")
    if panoptic and instances and not (with_instances and Path(instances).exists()):
        instances = None
    return {kind: file for kind, file in (("panoptic", panoptic), ("instance", instances)) if file}
