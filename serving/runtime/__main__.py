"""`python -m serving.runtime`: sets what must be set before numerical libraries are imported, then serves."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import tempfile

from serving.runtime.settings import parse_settings
from serving.threads import limit_threads


def main() -> int:
    """Serve the model that the command line names. Returns the exit status."""
    settings = parse_settings()
    logging.basicConfig(format="%(asctime)s %(process)d %(levelname)s %(name)s %(message)s", level=logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    limit_threads()
    counters = tempfile.mkdtemp(prefix="ratchet-metrics-")
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = counters
    try:
        from serving.runtime.replica import run_replica

        return run_replica(settings)
    finally:
        shutil.rmtree(counters, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
