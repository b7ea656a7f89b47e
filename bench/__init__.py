"""Measurements of Ratchet beside a peer: `make bench` or `python -m bench [--only NAME]`.

One file a measurement in `bench.suite`; what is found there is run. Not shipped in the wheel.
"""
