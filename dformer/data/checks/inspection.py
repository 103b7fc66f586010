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
    inspection.total = len(records)
    if limit is not None and limit < len(records):
        records = [records[i] for i in np.linspace(0, len(records) - 1, limit).round().astype(int)]
    void = inspection.metadata.get("ignore_label", 255)
    defaults: dict[str, Any] = {}
    if inspection.task == "semantic":
        defaults["label_map"] = {k: k for k in (void, *range(len(inspection.metadata.stuff_classes)))}
    # Detectron2's records of panoptic sets have no sizes.
    images = {image["id"]: image for image in contents.get("panoptic", {}).get("images", [])}
    records = [{**_size(images.get(r.get("image_id"))), **defaults, **r} for r in records]
    check = partial(check_image, task=inspection.task, ignore_label=void)
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


def _size(image: dict[str, Any] | None) -> dict[str, int]:
    return {"height": image["height"], "width": image["width"]} if image else {}
