"""Makes a kernel ready, and says what it runs on. The notebooks' first cell imports this module.

It installs torchinfo where that is missing, and nothing else: Colab's and Kaggle's own torch and
numpy stay as they are.
"""

import importlib.util
import subprocess
import sys

if importlib.util.find_spec("torchinfo") is None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "torchinfo"]
    if subprocess.run(install, check=False).returncode:
        raise RuntimeError(
            "torchinfo is missing and could not be installed: switch the internet on, "
            "or run `pip install torchinfo`, then restart the kernel."
        )

from common import machine

machine.describe()
