"""cloudem: from cryo-EM particles to 3D maps, at a cost known beforehand."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        """Return the version where it is asked for: what tells it takes long to import."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import metadata

        try:
            found = metadata.version("cloudem")
        except metadata.PackageNotFoundError:  # a source tree that is not installed
            found = "0+source"
        globals()[name] = found
        return found
