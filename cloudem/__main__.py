"""``cloudem`` and ``python -m cloudem``: the command line, guarded from its first moment on."""

import sys

from cloudem.interrupts import watch


def main() -> None:
    """Run the command line and exit."""
    watch()  # before all that takes a while to import, but not in worker processes, which import this module, too
    from cloudem.cli import main as run

    run(sys.argv[1:])


if __name__ == "__main__":
    main()
