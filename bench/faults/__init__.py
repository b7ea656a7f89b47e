"""The catalogue of faults: what becomes of a challenger that was trained on a broken snapshot.

`corruptions` breaks snapshots, `streams` cuts the recorded streams and writes their policies, `trial` plays one fault through the real
loop, `catalogue` plays many and counts.
"""
