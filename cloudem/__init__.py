"""cloudem: from cryo-EM data in object storage to 3D maps, at a cost known beforehand."""

__version__ = "0.1.0"
