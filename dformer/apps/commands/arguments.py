"""What parsers of several commands share."""

import argparse

from dformer.visualize import COLOR_BY, DEFAULT_STYLE, Style


def command_parser(doc: str | None, epilog: str = "") -> argparse.ArgumentParser:
    """Return the parser of a command, which is described by its module's docstring: what it does, then its usage."""
    description, _, usage = (doc or "").partition("\n\n")
    return argparse.ArgumentParser(
        description=description,
        epilog=f"{usage}\n{epilog}".strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_style_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --alpha, --no-labels and --color-by."""
    alpha, color_by = DEFAULT_STYLE.alpha, DEFAULT_STYLE.color_by
    parser.add_argument("--alpha", type=float, default=alpha, metavar="A", help="opacity, 0 to 1 (%(default)s)")
    parser.add_argument("--no-labels", action="store_true", help="no names and scores: they hide small objects")
    parser.add_argument(
        "--color-by",
        choices=COLOR_BY,
        default=color_by,
        help="instance: each object has a colour of its own (%(default)s)",
    )


def style_of(args: argparse.Namespace) -> Style:
    """Return the style that the arguments name; a value out of range is a UserError."""
    return Style(args.alpha, not args.no_labels, args.color_by)
