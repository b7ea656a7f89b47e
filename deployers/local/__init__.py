"""The target on one machine: replicas and a router as processes that outlive the daemon.

`LocalTarget` is level-based: every `apply` reads what is on disk and what runs, and takes one short stride towards the plan. Nothing of
importance is in its memory, so that a daemon killed at any instruction is replaced by one that goes on, and two daemons at once start
nothing twice.
"""

from deployers.local.supervised import Limits
from deployers.local.target import LocalTarget

__all__ = ["Limits", "LocalTarget"]
