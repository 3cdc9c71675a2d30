"""``python -m cloudem``: the command line."""

from cloudem.cli import main

if __name__ == "__main__":
    main()
