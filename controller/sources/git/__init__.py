"""Git: a bounded, distrustful reader of one branch, worktrees of pinned commits, and the way back (promoted digests)."""
