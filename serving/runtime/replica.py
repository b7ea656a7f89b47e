"""From a command line to a serving replica: what happens before the fork, and in each worker after it."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping

import uvicorn

from serving.clock import Clock
from serving.manifest import Manifest, ModelFolderError, SklearnPredictor, read_manifest
from serving.model import PredictionError, load_model
from serving.runtime.app import make_app
from serving.runtime.settings import Settings
from serving.runtime.supervisor import Supervisor
from serving.runtime.worker import Shared, Worker

logger = logging.getLogger("serving.replica")

EXIT_WORKERS = 1
EXIT_BAD_MODEL = 2
EXIT_NO_PORT = 3
KEEP_ALIVE_S = 75
"""Longer than clients pool a connection, so that it is they who close one, never the server under a request."""
BACKLOG = 1024


def run_replica(settings: Settings) -> int:
    """Serve until SIGTERM. Returns the exit status: 0 drained, 1 workers kept dying, 2 bad model folder, 3 port not to be had."""
    try:
        listener = _listen(settings)
    except OSError as error:
        logger.error("replica.no_port %s:%d: %s", settings.host, settings.port, error.strerror or error)
        return EXIT_NO_PORT
    try:
        manifest = read_manifest(settings.model_dir)
        shared = Shared.of(settings, manifest)
        prepared = _prepare(settings, shared) if is_fork_safe(manifest, os.environ) else None
    except (ModelFolderError, PredictionError) as error:
        logger.error("model.refused %s", error)
        return EXIT_BAD_MODEL

    def serve(number: int, ready_fd: int, life_fd: int) -> int:
        shared.metrics.use_row(number)
        try:
            config = prepared or _prepare(settings, shared)
        except (ModelFolderError, PredictionError) as error:
            logger.error("model.refused %s", error)
            return EXIT_BAD_MODEL
        server = _Server(config, ready_fd, life_fd)
        server.run(sockets=[listener])
        return 0 if server.started else EXIT_WORKERS

    supervisor = Supervisor(
        serve, listener=listener, workers=settings.workers, drain_s=settings.drain_s, announce=settings.announce
    )
    return supervisor.run()


def is_fork_safe(manifest: Manifest, environment: Mapping[str, str]) -> bool:
    """Whether the model may be loaded and asked before the fork.

    TensorFlow may not (its threads do not survive it), nor may an owner's unknown code, nor anything once OpenMP may start threads.
    """
    return isinstance(manifest.predictor, SklearnPredictor) and environment.get("OMP_NUM_THREADS") == "1"


def _prepare(settings: Settings, shared: Shared) -> uvicorn.Config:
    """Everything short of threads and sockets: the model loaded and asked once, the application built.

    Done before the fork where that is safe, so that workers share not only the model but all that was imported and built for it.
    Raises ModelFolderError, PredictionError.
    """
    worker = Worker(settings, load_model(settings.model_dir), shared, Clock.from_environment())
    worker.warm_up()
    config = uvicorn.Config(
        make_app(worker),
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        lifespan="on",
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=max(1, round(settings.drain_s)),
        backlog=BACKLOG,
    )
    config.load()
    return config


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


class _Server(uvicorn.Server):
    """Tells the parent when it accepts requests, and drains when the parent is gone."""

    def __init__(self, config: uvicorn.Config, ready_fd: int, life_fd: int) -> None:
        super().__init__(config)
        self._ready_fd = ready_fd
        self._life_fd = life_fd

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            asyncio.get_running_loop().add_reader(self._life_fd, self._parent_gone)
            os.write(self._ready_fd, b"1")

    def _parent_gone(self) -> None:
        asyncio.get_running_loop().remove_reader(self._life_fd)
        self.should_exit = True
