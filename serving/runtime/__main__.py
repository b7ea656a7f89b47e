"""`python -m serving.runtime`: sets what must be set before numerical libraries are imported, then serves."""

from __future__ import annotations

import logging
import sys

from serving.runtime.settings import parse_settings
from serving.threads import limit_threads


def main() -> int:
    """Serve the model that the command line names. Returns the exit status."""
    settings = parse_settings()
    logging.basicConfig(format="%(asctime)s %(process)d %(levelname)s %(name)s %(message)s", level=logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    limit_threads()
    from serving.runtime.replica import run_replica

    return run_replica(settings)


if __name__ == "__main__":
    sys.exit(main())
