"""Looks for all `faults` of registered data sets, reading each file once, on all cores."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from dformer.d2.data.datasets import available_tasks, get_metadata, has_classes, loading
from dformer.d2.data.faults import (
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
from dformer.utils.errors import UserError
from dformer.utils.files import read_json
from dformer.utils.processes import parallel_map


@dataclass
class Inspection:
    """What was found in a data set.

    Attributes:
        name: of the data set.
        kind: "panoptic", "instance" or "semantic"; "" where it cannot be loaded.
        total: number of images.
        seen: images that were looked at.
        findings: faults and oddities.
    """

    name: str
    kind: str
    total: int
    seen: list[Seen]
    findings: list[Finding]

    @property
    def fatal(self) -> list[Finding]:
        return [f for f in self.findings if f.level == FATAL]

    def by_kind(self, level: str) -> dict[str, list[Finding]]:
        """Findings of a level, grouped by their kind."""
        groups: dict[str, list[Finding]] = {}
        for finding in self.findings:
            if finding.level == level:
                groups.setdefault(finding.kind, []).append(finding)
        return groups

    @property
    def metadata(self) -> Metadata:
        return MetadataCatalog.get(self.name)


def inspect_datasets(
    training: Sequence[str],
    testing: Sequence[str] = (),
    queries: int = 100,
    limit: int | None = None,
    progress: bool = True,
    workers: int | None = None,
) -> list[Inspection]:
    """Inspect data sets, and the first of the training sets against all that are annotated for the same.

    Args:
        training: names of data sets to train on.
        testing: names of data sets to test on; none of their images should be trained on.
        queries: of the model; images with more objects are told.
        limit: look at so many images of each set, evenly chosen; None: at all.

    Raises:
        UserError: a data set is not registered.
    """
    found = [inspect(name, queries, limit, progress, workers) for name in dict.fromkeys([*training, *testing])]
    first, *others = found
    for other in others:
        if first.kind and first.kind == other.kind:
            other.findings += other_classes(first.metadata, other.metadata)
            if other.name in testing:
                other.findings += leaked_images(first.name, first.seen, other.seen)
    return found


def inspect(
    name: str, queries: int = 100, limit: int | None = None, progress: bool = True, workers: int | None = None
) -> Inspection:
    """Inspect one data set; see `inspect_datasets`."""
    inspection = Inspection(name, "", 0, [], [])
    try:
        samples = _samples(name, inspection)
    except UserError as error:
        if name not in DatasetCatalog:
            raise
        inspection.findings.append(Finding(FATAL, "cannot be loaded", name, str(error), "mend it, and check again"))
        return inspection
    if inspection.fatal:  # what the json says cannot be relied on
        return inspection
    inspection.total = len(samples)
    if limit is not None and limit < len(samples):
        samples = [samples[i] for i in np.linspace(0, len(samples) - 1, limit).round().astype(int)]
    inspection.seen = parallel_map(look_at, samples, name if progress else None, workers)
    inspection.findings += [f for image in inspection.seen for f in image.findings]
    for fault in SET_FAULTS:
        inspection.findings += fault(inspection.seen, inspection.metadata, queries)
    return inspection


def look_at(sample: Sample) -> Seen:
    """All that is to be known of an image and its annotation."""
    file = Path(sample.record["file_name"])
    seen = Seen(str(file))
    for fault in IMAGE_FAULTS:
        seen.findings += fault(sample, seen)
    if seen.size:
        seen.digest = hashlib.sha1(file.read_bytes()).hexdigest()
    return seen


def _samples(name: str, inspection: Inspection) -> list[Sample]:
    """Check the json files of a data set, load it, and join both; findings go to `inspection`."""
    declared = MetadataCatalog.get(name).get("declared")
    if declared:  # its json files can be looked at before the reader stumbles over them
        source = declared[0]
        files = {"coco_panoptic": [(source.annotations, True), (source.instances, False)]}.get(
            source.form, [(source.annotations, False)] if source.form == "coco_instances" else []
        )
    else:
        metadata = MetadataCatalog.get(name) if has_classes(name) else get_metadata(name)
        files = [(metadata.get("panoptic_json"), True), (metadata.get("json_file"), False)]
    if len(files) == 2 and files[0][0] and files[1][0] and not Path(files[1][0]).exists():
        files.pop()  # the instances of a panoptic set are for mask AP only
    contents = {panoptic: _check_json(file, panoptic, inspection) for file, panoptic in files if file}
    if inspection.fatal:
        return []
    metadata = get_metadata(name)
    with loading(name):
        records = DatasetCatalog.get(name)
    kinds = available_tasks(name)
    inspection.kind = next((kind for kind in ("panoptic", "semantic", "instance") if kind in kinds), "")
    if not inspection.kind:
        raise UserError(f'data set "{name}" is annotated for no task that can be trained')
    return _join(records, contents, inspection.kind, metadata)


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


def _join(records: list[Any], contents: dict[bool, Any], kind: str, metadata: Metadata) -> list[Sample]:
    make = partial(
        Sample,
        kind=kind,
        num_classes=len(metadata.get("stuff_classes") or metadata.thing_classes),
        ignore_label=metadata.get("ignore_label", 255),
    )
    content = contents.get(kind == "panoptic") or {"images": [], "annotations": []}
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    if kind == "panoptic" or not contents:
        return [
            make(record=r, size=sizes.get(r.get("image_id"), _stated_size(r)), objects=r.get("annotations", ()))
            for r in records
        ]
    objects = defaultdict(list)
    contiguous = metadata.thing_dataset_id_to_contiguous_id
    for annotation in content["annotations"]:
        objects[annotation["image_id"]].append({**annotation, "category_id": contiguous[annotation["category_id"]]})
    return [make(record=r, size=sizes[r["image_id"]], objects=objects[r["image_id"]]) for r in records]


def _stated_size(record: Any) -> tuple[int, int] | None:
    return (record["height"], record["width"]) if "height" in record else None
