"""`python -m serving.router`. Exit codes: 0 after SIGTERM, 2 bad arguments, 3 port or socket taken or unusable."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from serving.router.server import CannotStartError, RouterOptions, serve

EXIT_CANNOT_START = 3


def parse_options(arguments: list[str] | None = None) -> RouterOptions:
    parser = argparse.ArgumentParser(prog="python -m serving.router", description="Route requests to model versions.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0: any free port")
    parser.add_argument("--admin-socket", type=Path, required=True, help="Unix socket for the controller, mode 0600")
    parser.add_argument("--state", type=Path, required=True, help="file that keeps the table between starts")
    parser.add_argument("--announce", type=Path, help='file to write {"port", "pid"} to once requests are accepted')
    parser.add_argument("--drain-s", type=float, default=15.0, help="time for requests in flight on SIGTERM")
    return RouterOptions(**vars(parser.parse_args(arguments)))


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    options = parse_options()
    try:
        import uvloop
    except ModuleNotFoundError:
        runner = asyncio.Runner()
    else:
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with runner:
        try:
            runner.run(serve(options))
        except CannotStartError as error:
            print(f"router: {error}", file=sys.stderr)
            return EXIT_CANNOT_START
    return 0


if __name__ == "__main__":
    sys.exit(main())
