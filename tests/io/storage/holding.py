"""A process that holds a lease and does as it is told on its standard input, for tests that stop and kill it."""

from __future__ import annotations

import logging
import sys

from cloudem.errors import CloudemError
from cloudem.io.storage.lease import hold


def main() -> None:
    url, length = sys.argv[1], float(sys.argv[2])
    try:
        with hold(url, log=logging.getLogger("cloudem"), length=length) as lease:
            print("held", flush=True)
            for line in sys.stdin:
                if line.strip() == "commit":
                    lease.check()
                    print("committed", flush=True)
    except CloudemError as error:
        print(f"{type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    main()
