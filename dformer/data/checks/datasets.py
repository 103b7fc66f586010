"""Checks of all images of a data set, and of two data sets against each other."""

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest

from dformer.data.checks.findings import CheckedImage, Finding, Findings
from dformer.data.forms import FORMS, pair_files
from dformer.data.types import Metadata

IMAGES_A_CLASS = 10  # of a sample, for the absence of a class to mean something
FREQUENT = 0.01  # share of all pixels


def check_images(
    images: Sequence[CheckedImage], metadata: Metadata, queries: float, total: int, is_trained: bool
) -> Findings:
    """Check the images of a data set for a model with this number of queries; yield the findings.

    Args:
        total: number of images of the data set; there are fewer `images` where a sample is checked.
        is_trained: it is a training set, whose classes all need examples.
    """
    yield from _check_classes(images, metadata, total, is_trained)
    first: dict[str, str] = {}
    for image in images:
        if len(image.classes) > queries:
            what = f"has {len(image.classes)} objects, the model {queries} queries; the rest cannot be found"
            yield Finding("more objects than queries", image.file, what)
        if image.size and not image.classes:
            yield Finding("image without objects", image.file, "has no object")
        if image.digest in first:
            yield Finding("duplicate image", image.file, f"is the same image as {first[image.digest]}")
        elif image.digest:
            first[image.digest] = image.file
    source = metadata.declared[0] if metadata.get("declared") else None
    if source and FORMS[source.form].suffixes:
        _, without_annotation, without_image = pair_files(source)
        for file in without_annotation:
            yield Finding("image without annotation", str(file), "has no annotation of its name, and is not used")
        for file in without_image:
            yield Finding("annotation without image", str(file), "has no image of its name, and is not used")


def _check_classes(images: Sequence[CheckedImage], metadata: Metadata, total: int, is_trained: bool) -> Findings:
    counts = Counter(cls for image in images for cls in image.classes)
    names = metadata.get("stuff_classes") or metadata.get("thing_classes")
    missing = [name for k, name in enumerate(names) if not counts[k]]
    if images and not counts:
        yield Finding("nothing annotated", metadata.name, "no image has an object")
    elif missing and (len(images) == total or len(images) >= IMAGES_A_CLASS * len(names)):
        what = f"{len(missing)} of {len(names)} classes have no example in {len(images):,} images"
        what += f": {', '.join(missing[:8])}{', ...' if len(missing) > 8 else ''}"
        yield Finding("class without example" if is_trained else "class not tested", metadata.name, what)
    source = metadata.declared[0] if metadata.get("declared") else None
    if source and source.form == "semantic" and source.void is None and images:
        share = sum(image.void for image in images) / len(images)
        if share >= FREQUENT or (share and len(counts) < 2):
            what = f"{100 * share:.1f} % of the pixels are 255, which is neither a class nor declared as void; they are"
            yield Finding("undeclared void", str(source.annotations), what + " not trained on")


def compare_classes(first: Metadata, other: Metadata) -> Findings:
    """Compare the class names of two data sets; yield a finding on `other` where they differ.

    Videos whose objects are of one class, as DAVIS, are for models of any classes.
    """
    if other.get("evaluator_type") == "video" and len(other.thing_classes) == 1:
        return
    for key in ("thing_classes", "stuff_classes"):
        ours, theirs = first.get(key), other.get(key)
        for k, names in enumerate(zip_longest(ours, theirs, fillvalue="missing") if ours and theirs else ()):
            if names[0] != names[1]:
                what = f'class {k} is "{names[0]}" in {first.name} and "{names[1]}" here'
                yield Finding("other classes", other.name, what)
                return


def find_leaks(train: str, trained: Sequence[CheckedImage], tested: Sequence[CheckedImage]) -> Findings:
    """Find test images that are among the training images of the data set `train`; yield the findings."""
    files = {image.digest: image.file for image in trained if image.digest}
    for image in tested:
        if image.digest in files:
            what = f"is the same image as {files[image.digest]} of {train}"
            yield Finding("image in training and test", image.file, what)
