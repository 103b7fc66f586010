"""Inspections of data sets: all checks, reading each file once, on all cores."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dformer.data.checks.coco_json import check_json
from dformer.data.checks.datasets import check_images, compare_classes, find_leaks
from dformer.data.checks.findings import FATAL, Finding, ImageStats
from dformer.data.checks.images import check_image
from dformer.data.types import Metadata, Record
from dformer.utils.errors import UserError
from dformer.utils.files import read_json
from dformer.utils.processes import parallel_map

Loaded = tuple[Sequence[Record], str, Metadata]  # a data set's records, the task of its annotations, its metadata


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
    images: list[ImageStats] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    metadata: Metadata | None = None

    @property
    def fatal(self) -> list[Finding]:
        """Return the findings that keep training from starting."""
        return [f for f in self.findings if f.level == FATAL]

    def by_kind(self, level: str) -> dict[str, list[Finding]]:
        """Group the findings of a level by their kind."""
        groups: dict[str, list[Finding]] = defaultdict(list)
        for finding in self.findings:
            if finding.level == level:
                groups[finding.kind].append(finding)
        return groups


def inspect(
    name: str,
    json_files: dict[str, str | Path],
    load: Callable[[], Loaded],
    queries: int = 100,
    limit: int | None = None,
    progress: bool = True,
    workers: int | None = None,
) -> Inspection:
    """Inspect a data set: its json files first, then, if they have no fatal fault, the rest.

    Args:
        name: of the data set.
        json_files: its COCO json files by their format, "panoptic" or "instance".
        load: loads it; may raise UserError.
        queries: of the model; images with more objects are reported.
        limit: check this number of images, evenly chosen; None: all.
        progress: show a progress bar.
        workers: processes; by default as many as there are cores.

    Returns:
        What was found; where the data set cannot be loaded, this is a finding.
    """
    inspection = Inspection(name)
    contents = {}
    for form, file in json_files.items():
        try:
            contents[form] = read_json(file)
            inspection.findings += check_json(contents[form], str(file), form)
        except UserError as error:
            inspection.findings.append(Finding("json unreadable", str(file), str(error)))
    if inspection.fatal:  # what the json says cannot be relied on
        return inspection
    try:
        records, inspection.task, inspection.metadata = load()
    except UserError as error:
        inspection.findings.append(Finding("cannot be loaded", name, str(error)))
        return inspection
    records = _complete(records, contents.get("panoptic" if inspection.task == "panoptic" else "instance"), inspection)
    inspection.total = len(records)
    if limit is not None and limit < len(records):
        records = [records[i] for i in np.linspace(0, len(records) - 1, limit).round().astype(int)]
    check = partial(check_image, task=inspection.task, ignore_label=inspection.metadata.get("ignore_label", 255))
    inspection.images = parallel_map(check, records, name if progress else None, workers)
    inspection.findings += [f for image in inspection.images for f in image.findings]
    inspection.findings += check_images(inspection.images, inspection.metadata, queries)
    return inspection


def compare(training: Inspection, other: Inspection, tested: bool) -> None:
    """Add to `other`'s findings how its classes differ from `training`'s and, if `tested`, the images that both have.

    Sets that are annotated for different tasks are not compared.
    """
    if training.metadata and other.metadata and training.task == other.task:
        other.findings += compare_classes(training.metadata, other.metadata)
        if tested:
            other.findings += find_leaks(training.name, training.images, other.images)


def _complete(records: Sequence[Record], content: Any, inspection: Inspection) -> list[Record]:
    """The records with what only the json says: sizes and, of instances, all objects with all their fields."""
    metadata = inspection.metadata
    assert metadata
    more: dict[str, Any] = {}
    if inspection.task == "semantic":
        labels = (metadata.get("ignore_label", 255), *range(len(metadata.stuff_classes)))
        more["label_map"] = {label: label for label in labels}
    images = {image["id"]: image for image in content["images"]} if content else {}
    objects = defaultdict(list)
    if content and inspection.task == "instance":
        contiguous = metadata.thing_dataset_id_to_contiguous_id
        for annotation in content["annotations"]:
            objects[annotation["image_id"]].append({**annotation, "category_id": contiguous[annotation["category_id"]]})
    completed: list[Record] = []
    for record in records:
        image = images.get(record.get("image_id"), {})
        size = {key: image[key] for key in ("height", "width") if key in image}
        found = {"annotations": objects[record["image_id"]]} if image and inspection.task == "instance" else {}
        completed.append({**more, **record, **size, **found})
    return completed
