"""`python -m serving.runtime`: sets what must be set before numerical libraries are imported, then serves."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

from serving.runtime.pull import PullError, pull
from serving.runtime.settings import parse_settings
from serving.threads import limit_threads

EXIT_NO_MODEL = 4
"""The model could not be pulled; `serving.runtime.replica` has the other statuses."""


def main() -> int:
    """Serve the model that the command line names. Returns the exit status."""
    settings = parse_settings()
    logging.basicConfig(format="%(asctime)s %(process)d %(levelname)s %(name)s %(message)s", level=logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    limit_threads()
    if settings.layer is not None:
        try:
            settings = replace(settings, model_dir=pull(settings.layer))
        except (PullError, OSError) as error:
            logging.getLogger("serving.pull").error("model.not_pulled %s", error)
            return EXIT_NO_MODEL
    from serving.runtime.replica import run_replica

    return run_replica(settings)


if __name__ == "__main__":
    sys.exit(main())
