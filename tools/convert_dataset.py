#!/usr/bin/env python3
"""Write a data set in another form: coco_instances, coco_panoptic, semantic or instance_ids.

python tools/convert_dataset.py pedestrians.yaml --to coco_panoptic --output pedestrians_panoptic
python tools/convert_dataset.py coco_2017_val_panoptic --to instance_ids --output masks

The folder appears when all is written, with a dataset.yaml that declares what it holds. Images stay where they are.
"""

import argparse

from dformer.apps.convert_dataset import WRITERS, convert
from dformer.d2.data import find_datasets
from dformer.utils.errors import UserError, exit_on_user_error


@exit_on_user_error
def main() -> None:
    description, _, usage = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=usage, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="a name, or a YAML file of declarations (datasets/README.md)")
    parser.add_argument("--name", help="which data set of the file, where it declares several")
    parser.add_argument("--to", required=True, choices=WRITERS, dest="form", help="form to write")
    parser.add_argument("--output", metavar="DIR", required=True, help="new folder to write to")
    parser.add_argument("--workers", type=int, metavar="N", help="processes; by default as many as cores")
    args = parser.parse_args()
    names = find_datasets([args.dataset])
    if args.name is not None and args.name not in names or len(names) > 1 and args.name is None:
        raise UserError(f"choose one of the data sets in {args.dataset} with --name: {', '.join(names)}")
    for lost in convert(args.name or names[0], args.form, args.output, args.workers):
        print(f"not kept: {lost}")
    print(f"{args.output}: written, declared in {args.output}/dataset.yaml")


if __name__ == "__main__":
    main()
