"""allnorm: the statistics that normalization layers need in training, over any set of samples and ranks.

allnorm.numpy has every layer of the catalogue on arrays; it needs NumPy and nothing else. allnorm.torch has modules for
PyTorch.
"""

from allnorm._library import Error, layers, version

__all__ = ["Error", "layers", "version"]
__version__ = version
