"""cloudem: from cryo-EM particles to 3D maps, at a cost known beforehand."""

from importlib import metadata

try:
    __version__ = metadata.version("cloudem")
except metadata.PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+source"
