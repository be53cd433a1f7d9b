"""Networks and their parts. A new part is its class, its line in the table of its file, and its spec in spec/."""

from diffunet.nn.attention import ATTENTIONS
from diffunet.nn.blocks import BLOCKS
from diffunet.nn.classic import ClassicUNet
from diffunet.nn.conditioning import CLASSES
from diffunet.nn.embeddings import TIMES
from diffunet.nn.ends import ENDS
from diffunet.nn.layers import BORDERS, NORMS
from diffunet.nn.pyramids import INPUT_PYRAMIDS, OUTPUT_PYRAMIDS
from diffunet.nn.resample import DOWNS, UPS
from diffunet.nn.skips import SKIPS
from diffunet.nn.unet import UNet
from diffunet.table import Table
from diffunet.zoo import PRESETS, presets

NETWORKS: Table[type[UNet] | type[ClassicUNet]] = Table("network", {"unet": UNet, "classic": ClassicUNet})

__all__ = [
    "ATTENTIONS",
    "BLOCKS",
    "BORDERS",
    "CLASSES",
    "DOWNS",
    "ENDS",
    "INPUT_PYRAMIDS",
    "NETWORKS",
    "NORMS",
    "OUTPUT_PYRAMIDS",
    "PRESETS",
    "SKIPS",
    "TIMES",
    "UPS",
    "ClassicUNet",
    "UNet",
    "presets",
]
