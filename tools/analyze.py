#!/usr/bin/env python3
"""The same as `dformer analyze`."""

from dformer.apps.commands.analyze import main

if __name__ == "__main__":
    main()
