"""Tables and CSV of results."""

import math

from dformer.metrics.summary import class_table, summary_table, write_csv


def test_table():
    panoptic = {"PQ": 51.14, "SQ": 80, "RQ": 62, "PQ_th": 57, "SQ_th": 81, "RQ_th": 69, "PQ-cat": 1}
    instance = {"AP": 42.6, "AP50": 65, "AP75": 45, "APs": math.nan, "APm": 46, "APl": 100, "AP-cat": 1}
    lines = summary_table({"panoptic_seg": panoptic, "segm": instance}).splitlines()
    assert [" ".join(line.split()) for line in lines[1:-1]] == [
        "panoptic PQ 51.1 SQ 80.0 RQ 62.0",
        "panoptic, things PQ 57.0 SQ 81.0 RQ 69.0",
        "instance AP 42.6 AP50 65.0 AP75 45.0 APs - APm 46.0 APl 100.0",
    ]


def test_class_table_and_csv(tmp_path):
    results = {
        "panoptic_seg": {"PQ": 50.25, "PQ-cat": 100 / 3, "PQ-sky-other": math.nan},
        "segm": {"AP": math.nan, "AP-cat": 12.0},
    }
    assert [line.split() for line in class_table(results).splitlines()] == [
        ["class", "PQ", "AP"],
        ["---------", "----", "----"],
        ["cat", "33.3", "12.0"],
        ["sky-other", "-", "-"],
    ]
    write_csv(tmp_path / "results.csv", {"pets": results})
    assert (tmp_path / "results.csv").read_text().splitlines() == [
        "dataset,task,metric,class,value",
        "pets,panoptic_seg,PQ,,50.25",
        "pets,panoptic_seg,PQ,cat,33.333333333333336",
        "pets,panoptic_seg,PQ,sky-other,",
        "pets,segm,AP,,",
        "pets,segm,AP,cat,12.0",
    ]
