"""cloudem: from cryo-EM particles to 3D maps, at a cost known beforehand.

In Python, `open_result` opens the results of a job and `open_particles` a particle store.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cloudem.io.particle_store import open_particles as open_particles
    from cloudem.jobs.opened import open_result as open_result

    __version__: str
else:
    _OPENED = ("open_particles", "open_result")

    def __getattr__(name: str) -> object:
        """Return a name where it is asked for: what is behind it takes long to import."""
        import importlib

        if name in _OPENED:
            found = getattr(importlib.import_module("cloudem.jobs.opened"), name)
        elif name == "__version__":
            found = _version()
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        """Return what completion offers."""
        return sorted({*globals(), *_OPENED, "__version__"})

    def _version() -> str:
        from importlib import metadata

        try:
            return metadata.version("cloudem")
        except metadata.PackageNotFoundError:  # a source tree that is not installed
            return "0+source"
