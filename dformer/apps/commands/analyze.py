"""Write a report of saved predictions as one HTML page: metrics, confusions, sizes, calibration, examples, curves.

dformer analyze output/quickstart --output report.html
dformer analyze output/one --compare output/other --output report.html
dformer analyze predictions/coco_2017_val_panoptic --config-file configs/... --output report.html
"""

import argparse

from dformer.apps.commands.arguments import add_style_arguments, command_parser, style_of
from dformer.apps.report import read_run, write_report
from dformer.utils.errors import exit_on_user_error


@exit_on_user_error
def main() -> None:
    parser = command_parser(__doc__)
    parser.add_argument("run", metavar="RUN", help="OUTPUT_DIR of a run, or a folder of saved predictions")
    parser.add_argument("--compare", metavar="OTHER", help="a second run, shown beside the first")
    parser.add_argument("--output", metavar="FILE", default="report.html", help="page to write (%(default)s)")
    parser.add_argument("--images", type=int, metavar="N", default=4, help="pictures of each kind (%(default)s)")
    add_style_arguments(parser)
    parser.add_argument("--config-file", metavar="FILE", help="config of predictions without config.yaml")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args()
    folders = [args.run] + ([args.compare] if args.compare else [])
    runs = [read_run(folder, args.config_file, args.opts) for folder in folders]
    write_report(runs, args.output, args.images, style_of(args))
    print(f"report: {args.output}")
