"""Makes a kernel ready, and says what it runs on. The notebooks' first cell imports this module.

It installs what is missing of a few small packages, and nothing else: Colab's and Kaggle's own
torch and numpy stay as they are.
"""

import importlib.util
import subprocess
import sys

SMALL = ("torchinfo", "safetensors", "pooch")

if missing := [name for name in SMALL if importlib.util.find_spec(name) is None]:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", *missing]
    if subprocess.run(install, check=False).returncode:
        raise RuntimeError(
            f"{', '.join(missing)} could not be installed: switch the internet on, or run "
            f"`pip install {' '.join(missing)}`, then restart the kernel."
        )

from common import machine  # noqa: E402

machine.describe()
