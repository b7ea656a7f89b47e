"""Data: sources, checks, labels, feature kinds, maturity, and the reader of the prediction log."""
