"""NannyML's own estimates, in a process of its own: `python nannyml_peer.py IN.parquet OUT.json`.

NannyML imports libraries for plots and for estimators other than CBPE; they are not installed and nothing here uses them, so empty modules
stand in for them. All of CBPE and of its calibration is NannyML's.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

UNUSED = (
    "matplotlib",
    "matplotlib.colors",
    "seaborn",
    "segment",
    "segment.analytics",
    "category_encoders",
    "flaml",
    "lightgbm",
)


class _Unused(types.ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def main(rows: str, out: str) -> None:
    """In: columns part (reference or analysis), y_true, y_pred, and p (binary) or p0, p1, …; rows of a chunk in attribute `chunk`."""
    sys.path.append(str(Path(sys.prefix) / "peers"))
    for name in UNUSED:
        sys.modules[name] = _Unused(name)
    import pandas as pd
    from nannyml import CBPE

    frame = pd.read_parquet(rows)
    many = [name for name in frame.columns if name[0] == "p" and name[1:].isdigit()]
    estimator = CBPE(
        y_true="y_true",
        y_pred="y_pred",
        y_pred_proba={int(name[1:]): name for name in many} if many else "p",
        problem_type="classification_multiclass" if many else "classification_binary",
        metrics=["accuracy", "f1", "roc_auc"] + ([] if many else ["precision", "recall", "average_precision"]),
        chunk_size=int(frame["chunk"].iloc[0]),
    )
    reference = frame[frame["part"] == "reference"].reset_index(drop=True)
    analysis = frame[frame["part"] == "analysis"].reset_index(drop=True)
    result = estimator.fit(reference).estimate(analysis).filter(period="analysis").to_df()
    names = {name for name, _ in result.columns if name != "chunk"}
    Path(out).write_text(json.dumps({name: result[(name, "value")].tolist() for name in sorted(names)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
