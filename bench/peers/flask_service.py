"""The service that many teams start with: Flask, one model, one route. Run by gunicorn as `bench.peers.flask_service:make_app("DIR")`.

It answers the same request with the same numbers as our runtime, but keeps no prediction log, no metrics, and no limits.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import skops.io
from flask import Flask, jsonify, request
from flask.typing import ResponseReturnValue


def make_app(model_dir: str) -> Flask:
    """A WSGI application for the scikit-learn model in `model_dir`."""
    path = Path(model_dir) / "estimator.skops"
    model = skops.io.load(path, trusted=skops.io.get_untrusted_types(file=path))
    names = [f["name"] for f in json.loads((Path(model_dir) / "model.json").read_bytes())["features"]]
    app = Flask(__name__)

    @app.post("/v1/models/bench:predict")
    def predict() -> ResponseReturnValue:
        frame = pd.DataFrame(request.get_json()["instances"], columns=names)
        return jsonify(predictions=model.predict_proba(frame)[:, 1].tolist())

    return app
