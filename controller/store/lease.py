"""Who may act: one lease with a fencing epoch, as a pure value that both stores keep (invariant 6).

The epoch grows with every change of holder, so whoever was leader before can be told from whoever is now, however late he writes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from controller.store.port import FencedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """`holder` is None when nobody leads; `epoch` is the last one handed out, 0 before the first."""

    holder: str | None = None
    epoch: int = 0
    expires_at: datetime | None = None

    def taken_by(self, holder: str, now: datetime, ttl_s: float) -> Lease | None:
        """The lease once `holder` takes or renews it at `now`; None while another's is valid.

        A holder who comes back after his lease ran out, and before anybody else took it, goes on under his old epoch."""
        expires_at = now + timedelta(seconds=ttl_s)
        if self.holder == holder:
            return replace(self, expires_at=expires_at)
        if self.holder is not None and self.expires_at is not None and now < self.expires_at:
            return None
        return Lease(holder=holder, epoch=self.epoch + 1, expires_at=expires_at)

    def released_by(self, holder: str) -> Lease:
        """The lease once `holder` gave it up; unchanged if he does not hold it. The epoch stays used."""
        return replace(self, holder=None, expires_at=None) if self.holder == holder else self

    def check(self, epoch: int) -> None:
        """Raises FencedError unless `epoch` is the leader's."""
        if self.holder is None:
            raise FencedError(
                f"epoch {epoch} does not lead: nobody does (last epoch {self.epoch}); acquire the lease first"
            )
        if epoch != self.epoch:
            raise FencedError(f"epoch {epoch} does not lead: {self.holder} does, with epoch {self.epoch}; stop acting")
