"""`python -m serving.predict`: scores of a Parquet file by exactly the code that serves, for whoever judges a model before it does.

Ends with status 0, or 2 and one sentence on stderr when the model folder or the rows are at fault.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from serving.threads import limit_threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EXIT_BAD_INPUT = 2


def main() -> int:
    """Score the file that the command line names. Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m serving.predict", description="Score a Parquet file.")
    parser.add_argument("--model-dir", type=Path, required=True, help="model folder (holds model.json)")
    parser.add_argument(
        "--input", type=Path, required=True, help="Parquet file; columns that are no feature are ignored"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help=".npz that gets `scores` and, if asked for, `latency_ms`"
    )
    parser.add_argument("--latency-rows", type=int, default=0, help="also time so many single-row calls")
    arguments = parser.parse_args()
    limit_threads()
    from serving.frame import InputError
    from serving.manifest import ModelFolderError
    from serving.model import PredictionError, load_model
    from serving.offline import score_file, time_rows

    try:
        model = load_model(arguments.model_dir)
        scores, columns = score_file(model, arguments.input)
        arrays = {"scores": scores}
        if arguments.latency_rows > 0:
            arrays["latency_ms"] = time_rows(model, columns, arguments.latency_rows)
    except (ModelFolderError, InputError, PredictionError) as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    write_arrays(arguments.output, arrays)
    return 0


def write_arrays(path: Path, arrays: dict[str, NDArray[np.float64]]) -> None:
    """Write an uncompressed .npz by rename. Raises OSError."""
    import numpy as np

    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


if __name__ == "__main__":
    sys.exit(main())
