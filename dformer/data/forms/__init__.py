"""The forms in which users' data may be annotated: `FORMS`, one reader each.

A reader returns records in Detectron2's standard format, and metadata: the classes, which of them are things, and which
evaluator applies. Frames of a video are records with its name and their number, see `dformer.data.video`.
"""

from dformer.data.forms import pictures, video
from dformer.data.forms.source import FORMS, Annotated, Form, Source, class_metadata, folder_of, pair_files

__all__ = ["FORMS", "Annotated", "Form", "Source", "class_metadata", "folder_of", "pair_files", "pictures", "video"]
