"""`ratchet recover`: what a person orders after a backup of the database was restored, while no daemon runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

from config.settings import Settings
from controller.leadership import AlreadyRunning
from controller.recovering import EPOCHS_SKIPPED, recover
from controller.store.port import Commit, StoreError
from controller.store.sql import SqlStore
from controller.wiring import build


class NotRecovered(Exception):
    """It could not be done; the message says why. It may be repeated."""


def recover_all(settings: Settings, actor: str, reason: str) -> Iterator[str]:
    """Every model of the database; a line for each. Raises NotRecovered."""
    try:
        parts = build(settings, lambda _reason: None)
        store = parts.store
        assert isinstance(store, SqlStore)
        with closing(store):
            epoch = parts.leadership.start()
            if epoch is None:
                raise NotRecovered(f"{store.holder()} leads on this database; stop all daemons, then repeat it")
            try:
                for state in store.load_all():
                    decision = recover(state, parts.reconciler.policy(state), actor, reason, parts.clock.now())
                    store.commit(
                        epoch,
                        Commit(
                            model=decision.after, closed=decision.closed, events=decision.events,
                            notices=decision.notices,
                        ),
                    )  # fmt: skip
                    yield f"{state.name}: {decision.sentence}"
                store.skip_epochs(epoch, EPOCHS_SKIPPED)
            finally:
                parts.leadership.stop()
        yield "done: start the daemon"
    except (StoreError, AlreadyRunning, OSError, ValueError) as error:
        raise NotRecovered(str(error)) from error
