"""Check data sets before they are trained on: each file is read once, on all cores.

dformer check pedestrians.yaml
dformer check coco_2017_train_panoptic coco_2017_val_panoptic --html coco.html
dformer check --config-file configs/own/dformer_pennfudan.yaml
dformer check pedestrians.yaml --suggest my_config.yaml

The first data set is the one to train on: images that others share with it are reported.
"""

import argparse
import math
import sys

from dformer.apps.commands.arguments import add_style_arguments, command_parser, style_of
from dformer.apps.data_report import text_report, write_html
from dformer.d2.config import get_cfg, merge_config
from dformer.d2.config.diffusioninst import num_objects
from dformer.d2.data import find_datasets, register_custom
from dformer.d2.data.inspection import inspect_datasets
from dformer.data.checks.suggestion import Numbers, write_suggestion
from dformer.utils.errors import UserError, exit_on_user_error
from dformer.utils.files import write_json


@exit_on_user_error
def main() -> None:
    parser = command_parser(__doc__, "exit status: 0 training can start, 1 it cannot, 2 the arguments are wrong")
    parser.add_argument("datasets", nargs="*", metavar="DATASET", help="a name, or a YAML file of declarations")
    parser.add_argument("--config-file", metavar="FILE", help="check what it names, for its number of queries")
    parser.add_argument("--html", metavar="FILE", default="check_dataset.html", help="page to write (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write all findings to this file, too")
    parser.add_argument("--suggest", metavar="FILE", help="write a config for the first of the data sets to this file")
    parser.add_argument("--workers", type=int, metavar="N", help="processes; by default as many as cores")
    add_style_arguments(parser)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args()
    cfg = get_cfg()
    merge_config(cfg, args.config_file, args.opts)
    register_custom(cfg)
    training, testing = list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)
    if args.datasets:
        first, *others = find_datasets(args.datasets)
        training, testing = [first], others
    if not training:
        raise UserError("name a data set, a YAML file that declares one, or a config with --config-file")
    queries = math.inf if args.suggest else num_objects(cfg)  # a suggestion has its own
    inspections = inspect_datasets(training, testing, queries, workers=args.workers)
    print(text_report(inspections))
    write_html(inspections, args.html, args.workers, style_of(args))
    print(f"with pictures: {args.html}")
    if args.suggest and not inspections[0].fatal:
        files = [word for word in args.datasets if word.endswith((".yaml", ".yml"))]
        if args.config_file or len(files) > 1:
            raise UserError("--suggest needs the data sets as arguments, in one YAML file")
        trained = inspections[0]
        names = trained.name, (testing or training)[0]
        numbers = Numbers.of(trained.images, trained.total)
        write_suggestion(args.suggest, numbers, trained.task, names, files[0] if files else None)
        print(f"suggested config: {args.suggest}")
    if args.json:
        found = {
            inspection.name: [{"level": f.level, **f._asdict(), "remedy": f.remedy} for f in inspection.findings]
            for inspection in inspections
        }
        write_json(args.json, found, indent=1)
    sys.exit(1 if any(inspection.fatal for inspection in inspections) else 0)
