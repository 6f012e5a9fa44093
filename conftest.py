"""Every test run, notebooks included, uses the smallest budget unless told otherwise."""

import os

os.environ.setdefault("CNN_PROFILE", "smoke")
