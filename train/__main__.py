"""Front door: `python -m train CONFIG.toml`, also under torchrun and accelerate launch, is `diffunet train`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from diffunet.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
