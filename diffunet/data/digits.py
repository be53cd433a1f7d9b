"""The 1797 handwritten digits, 1 x 8 x 8, that come with scikit-learn: data for a demo without a download."""

from __future__ import annotations

from diffunet.data.base import Images, Split
from diffunet.errors import ConfigError
from diffunet.spec import DataConfig


def load_digits(config: DataConfig) -> Split[Images]:
    """All the digits, without a held-out part; grey levels 0..16.

    Raises:
        ConfigError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets  # an extra, and a second of import
    except ImportError as error:
        raise ConfigError(f"data '{config.name}' needs scikit-learn: pip install 'diffunet[demo]'") from error
    digits = datasets.load_digits()
    pixels = digits.images.astype("uint8")[:, None]
    return Split(Images.from_array(pixels, (0.0, 16.0), digits.target, [str(name) for name in digits.target_names]))
