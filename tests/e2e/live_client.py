"""Clients that ask a model all the while, over the router as everybody does, and remember whatever went wrong."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 20.0
PAUSE_S = 0.03
"""Between two requests of one client, so that most of the machine is left to what is tested."""
ROUTER_OUTAGE_S = 15.0
"""How long a client that is patient with the router goes on trying."""

Row = dict[str, float | str]


def truth(row: Mapping[str, Any]) -> int:
    """What really happens to a row; the training data of `fast_rig.write_rows` follow it, but for noise."""
    return int(float(row["x1"]) + float(row["x2"]) > 0)


def random_row(random_: random.Random) -> Row:
    return {"x1": random_.gauss(0, 1), "x2": random_.gauss(0, 1), "color": random_.choice(("red", "blue"))}


def random_rows(seed: int, count: int) -> list[Row]:
    random_ = random.Random(seed)
    return [random_row(random_) for _ in range(count)]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request came to."""

    id: str
    at: float
    """When it was asked, by the monotonic clock."""
    seconds: float
    version: int | None
    """None if it failed."""
    score: float | None = None
    logged: bool = True
    """False where the answer itself says that it is not on record."""
    problem: str = ""


@dataclass
class Clients:
    """A context in which `count` clients ask; with `feedback` they report what really happened right after each answer."""

    url: str
    model: str
    count: int = 2
    feedback: bool = False
    patient: bool = False
    """Try again when the connection breaks or the router is away; `retries` counts how often that was needed."""
    make_row: Callable[[random.Random], Row] = random_row
    answers: list[Answer] = field(default_factory=list)
    feedback_problems: list[str] = field(default_factory=list)
    retries: int = 0

    def __enter__(self) -> Clients:
        self._stop = threading.Event()
        self._serial = itertools.count()
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(self.count)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @property
    def failures(self) -> list[str]:
        """One sentence for every request that was not answered with a score."""
        return [f"{answer.id}: {answer.problem}" for answer in list(self.answers) if answer.problem]

    def versions(self, last: int | None = None) -> list[int | None]:
        """Which version answered, oldest first."""
        answers = list(self.answers)
        return [answer.version for answer in (answers[-last:] if last else answers)]

    def more(self, count: int, timeout_s: float = 60.0) -> list[Answer]:
        """The next `count` answers, failures included."""
        begun, deadline = len(self.answers), time.monotonic() + timeout_s
        while len(self.answers) < begun + count:
            assert time.monotonic() < deadline, f"no {count} answers in {timeout_s:g} s; failures: {self.failures[:3]}"
            time.sleep(0.01)
        return self.answers[begun : begun + count]

    # ------------------------------------------------------------ one client
    def _run(self, number: int) -> None:
        random_ = random.Random(number)
        caller = _Caller(self.url, patience_s=ROUTER_OUTAGE_S if self.patient else 0.0)
        while not self._stop.is_set():
            row = self.make_row(random_)
            answer = self._ask(caller, f"q{next(self._serial)}", row)
            self.answers.append(answer)
            self.retries += caller.retries
            caller.retries = 0
            if self.feedback and not answer.problem:
                self._report(caller, answer.id, truth(row))
            self._stop.wait(PAUSE_S)
        caller.close()

    def _ask(self, caller: _Caller, row_id: str, row: Row) -> Answer:
        began = time.monotonic()
        try:
            status, headers, body = caller.post(
                f"/v1/models/{self.model}:predict", {"instances": [row], "ids": [row_id]}
            )
        except OSError as error:
            return Answer(row_id, began, time.monotonic() - began, None, problem=repr(error))
        seconds = time.monotonic() - began
        if status != 200:
            return Answer(row_id, began, seconds, None, problem=f"{status} {body}")
        logged = "x-ratchet-unlogged" not in headers
        return Answer(row_id, began, seconds, int(body["version"]), float(body["predictions"][0]), logged)

    def _report(self, caller: _Caller, row_id: str, label: int) -> None:
        try:
            status, _, body = caller.post(
                f"/v1/models/{self.model}/feedback", {"labels": [{"id": row_id, "label": label}]}
            )
            problem = "" if status == 200 else f"{status} {body}"
        except OSError as error:
            problem = repr(error)
        if problem:
            self.feedback_problems.append(f"{row_id}: {problem}")


class _Caller:
    """One keep-alive connection to the router."""

    def __init__(self, url: str, *, patience_s: float = 0.0) -> None:
        address = urlsplit(url)
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S)
        self._patience_s = patience_s
        self.retries = 0

    def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], Any]:
        """Status, headers in lower case, JSON. Raises OSError."""
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return self._once(path, body)
            except OSError:
                self._connection.close()
                if time.monotonic() >= deadline:
                    raise
                self.retries += 1
                time.sleep(0.05)

    def _once(self, path: str, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], Any]:
        try:
            self._connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            answer = self._connection.getresponse()
            content = answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError(repr(error)) from error
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, json.loads(content)

    def close(self) -> None:
        self._connection.close()


def post(url: str, path: str, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], Any]:
    """One request on a connection of its own. Raises OSError."""
    caller = _Caller(url)
    try:
        return caller.post(path, body)
    finally:
        caller.close()
