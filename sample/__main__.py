"""Front door: `python -m sample RUN` is `diffunet sample`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from diffunet.cli import main

sys.exit(main(["sample", *sys.argv[1:]]))
