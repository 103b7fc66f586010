"""Public docstrings say what is done: their first word is an imperative verb."""

import ast
from collections.abc import Iterator

import pytest

from tests import ROOT

VERBS = set(
    """
    Accumulate Add Adjust Align Allow Analyze Append Apply Ask Assign Attend Average Begin Bound Broadcast Build
    Bundle Call Cast Change Check Choose Clip Collect Combine Compare Compile Compute Configure Convert Copy
    Count Create Crop Cut Declare Decode Decorate Delete Denoise Describe Detect Determine Display Downsample
    Draw Embed Encode Encourage End Enlarge Enter Estimate Evaluate Exit Expand Explain Export Extend Extract
    Fetch Fill Filter Find Fit Flatten Fold Follow Forbid Forget Format Forward Fuse Gather Generate Get Give Go
    Group Handle Hide Hold Identify Ignore Implement Import Indicate Infer Initialise Initialize Insert Inspect
    Interpolate Invert Iterate Join Keep Label Launch Lay Leave Let Limit List Load Locate Lock Log Look Make
    Map Mark Match Measure Merge Mix Modulate Move Name Normalise Normalize Notify Observe Open Order Pad Paint
    Pair Parse Pass Paste Permute Pick Plot Pool Post-process Predict Prefetch Prepare Preprocess Print Process
    Project Propagate Provide Put Raise Rank Read Receive Record Reduce Refine Register Release Remove Rename
    Render Repeat Replace Replay Report Represent Request Require Resample Reset Resize Resolve Restart Restore
    Resume Return Reverse Rotate Run Sample Save Say Scale Scan Score Search Seed Segment Select Send Serve Set
    Shift Show Shuffle Skip Sort Split Start Step Stop Store Stream Subtract Sum Summarize Swap Synchronize Take
    Tell Test Tie Time Trace Track Train Transform Translate Traverse Truncate Turn Unpack Unwrap Update
    Upsample Use Validate Verify Visualize Wait Warn Weigh Wrap Write Yield Zip
    """.split()  # noqa: SIM905
)
FILES = [file for folder in ("dformer", "tools", "datasets", "benchmarks") for file in (ROOT / folder).rglob("*.py")]


def public_docstrings(node: ast.AST) -> Iterator[tuple[str, int, str]]:
    """Yield name, line and docstring of public classes, functions and methods."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if child.name.startswith("_"):
                continue
            if text := ast.get_docstring(child):
                yield child.name, child.lineno, text
            if isinstance(child, ast.ClassDef):
                yield from public_docstrings(child)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_public_docstrings_begin_with_a_verb(file) -> None:
    wrong = [
        f"{file}:{line} {name}: {text.splitlines()[0]}"
        for name, line, text in public_docstrings(ast.parse(file.read_text()))
        if text.split()[0].rstrip(",;:.") not in VERBS
    ]
    assert not wrong, "\n".join(wrong)
