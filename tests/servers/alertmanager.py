"""A real Alertmanager on loopback, with a configuration of the test's own."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers import free_port, need, running, wait_until

PACKAGE = "prometheus-alertmanager"


@dataclass(frozen=True, kw_only=True)
class RunningAlertmanager:
    url: str

    def alerts(self, **query: str) -> list[dict[str, Any]]:
        """What it knows, by its own API."""
        return list(self._ask("/api/v2/alerts"))

    def post(self, alerts: list[dict[str, Any]]) -> None:
        """As Prometheus does."""
        body = json.dumps(alerts).encode()
        request = urllib.request.Request(
            f"{self.url}/api/v2/alerts", data=body, headers={"content-type": "application/json"}
        )
        urllib.request.urlopen(request, timeout=10).close()

    def _ask(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=10) as answer:
            return json.load(answer)


NOBODY = """\
route: {receiver: nobody}
receivers: [{name: nobody}]
"""


@contextmanager
def alertmanager(folder: Path, config: str = NOBODY) -> Iterator[RunningAlertmanager]:
    """Answers when it is ready; gone at the end."""
    command = need("prometheus-alertmanager", PACKAGE)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "alertmanager.yml").write_text(config)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    log = folder / "alertmanager.log"
    arguments = [
        command, f"--config.file={folder / 'alertmanager.yml'}", f"--storage.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=",
    ]  # fmt: skip

    def is_ready() -> bool:
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    with running(arguments, log) as child:
        wait_until(is_ready, child, log)
        yield RunningAlertmanager(url=url)
