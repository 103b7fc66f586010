"""The command `dformer`, as `python -m dformer`."""

from dformer.apps.commands import main

if __name__ == "__main__":
    main()
