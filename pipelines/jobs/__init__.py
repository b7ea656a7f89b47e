"""Bounded pieces of heavy work (prepare, tune, train, judge, package, observe), outside the daemon."""
