#!/usr/bin/env python3
"""The same as `dformer quickstart`."""

from dformer.apps.commands.quickstart import main

if __name__ == "__main__":
    main()
