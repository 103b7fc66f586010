"""Looks for all `faults` of a data set, reading each file once, on all cores."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dformer.data.checks.faults import (
    FATAL,
    IMAGE_FAULTS,
    JSON_FAULTS,
    SET_FAULTS,
    Finding,
    Sample,
    Seen,
    leaked_images,
    other_classes,
)
from dformer.data.types import Metadata, Record
from dformer.utils.errors import UserError
from dformer.utils.files import read_json
from dformer.utils.processes import parallel_map


class Loaded(NamedTuple):
    """Hold a data set that has been loaded: its records, what it is annotated for, and its metadata."""

    records: Sequence[Record]
    kind: str
    metadata: Metadata


@dataclass
class Inspection:
    """Hold what was found in a data set.

    Attributes:
        name: of the data set.
        kind: "panoptic", "instance" or "semantic"; "" where it cannot be loaded.
        total: number of images.
        seen: images that were looked at.
        findings: faults and oddities.
        metadata: None where it cannot be loaded.
    """

    name: str
    kind: str
    total: int
    seen: list[Seen]
    findings: list[Finding]
    metadata: Metadata | None = None

    @property
    def fatal(self) -> list[Finding]:
        """Return the findings that keep training from starting."""
        return [f for f in self.findings if f.level == FATAL]

    def by_kind(self, level: str) -> dict[str, list[Finding]]:
        """Group the findings of a level by their kind."""
        groups: dict[str, list[Finding]] = {}
        for finding in self.findings:
            if finding.level == level:
                groups.setdefault(finding.kind, []).append(finding)
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
    """Inspect a data set: its json files first, then, if they have no fatal fault, what `load` makes of them.

    Args:
        name: of the data set.
        json_files: its COCO json files by their format, "panoptic" or "instance".
        load: may raise UserError.
        queries: of the model; images with more objects are reported.
        limit: look at this number of images, evenly chosen; None: at all.
        progress: show a progress bar.
        workers: processes; by default as many as there are cores.

    Returns:
        What was found; where the data set cannot be loaded, this is a finding.
    """
    inspection = Inspection(name, "", 0, [], [])
    contents = {kind: _check_json(file, kind == "panoptic", inspection) for kind, file in json_files.items()}
    if inspection.fatal:  # what the json says cannot be relied on
        return inspection
    try:
        loaded = load()
    except UserError as error:
        inspection.findings.append(Finding(FATAL, "cannot be loaded", name, str(error), "mend it, and check again"))
        return inspection
    inspection.kind, inspection.metadata = loaded.kind, loaded.metadata
    samples = _samples(loaded, contents)
    inspection.total = len(samples)
    if limit is not None and limit < len(samples):
        samples = [samples[i] for i in np.linspace(0, len(samples) - 1, limit).round().astype(int)]
    inspection.seen = parallel_map(_look_at, samples, name if progress else None, workers)
    inspection.findings += [f for image in inspection.seen for f in image.findings]
    for fault in SET_FAULTS:
        inspection.findings += fault(inspection.seen, loaded.metadata, queries)
    return inspection


def compare(training: Inspection, other: Inspection, tested: bool) -> None:
    """Add to `other`'s findings what it shares with the set that is trained on and, if it is `tested`, should not.

    Sets that are annotated for different tasks are not compared.
    """
    if training.kind and training.kind == other.kind:
        assert training.metadata and other.metadata
        other.findings += other_classes(training.metadata, other.metadata)
        if tested:
            other.findings += leaked_images(training.name, training.seen, other.seen)


def _look_at(sample: Sample) -> Seen:
    file = Path(sample.record["file_name"])
    seen = Seen(str(file))
    for fault in IMAGE_FAULTS:
        seen.findings += fault(sample, seen)
    if seen.size:
        seen.digest = hashlib.sha1(file.read_bytes()).hexdigest()
    return seen


def _check_json(file: str | Path, panoptic: bool, inspection: Inspection) -> Any:
    try:
        content = read_json(file)
    except UserError as error:
        inspection.findings.append(Finding(FATAL, "json unreadable", str(file), str(error), "write it anew"))
        return None
    for fault in JSON_FAULTS:
        found = list(fault(content, str(file), panoptic))
        inspection.findings += found
        if any(f.level == FATAL for f in found) and fault in JSON_FAULTS[:3]:
            break  # the others would stumble over it
    return content


def _samples(loaded: Loaded, contents: dict[str, Any]) -> list[Sample]:
    """Join records with what the json says of them: sizes and, of instances, all objects with all their fields."""
    metadata, kind = loaded.metadata, loaded.kind
    classes = metadata.get("stuff_classes") or metadata.thing_classes
    ignore_label = metadata.get("ignore_label", 255)
    content = contents.get("panoptic" if kind == "panoptic" else "instance")
    stated = {image["id"]: image for image in content["images"]} if content else {}
    objects = defaultdict(list)
    if content and kind != "panoptic":
        contiguous = metadata.thing_dataset_id_to_contiguous_id
        for annotation in content["annotations"]:
            objects[annotation["image_id"]].append({**annotation, "category_id": contiguous[annotation["category_id"]]})
    samples = []
    for record in loaded.records:
        image = stated.get(record.get("image_id"), record)
        size = (image["height"], image["width"]) if "height" in image else None
        found = objects[record["image_id"]] if objects else record.get("annotations", ())
        samples.append(Sample(record, kind, len(classes), ignore_label, size, found))
    return samples
