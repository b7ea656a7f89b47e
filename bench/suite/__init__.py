"""One module a bench, each with a `BENCH` of the module's name. A new file here is found and run."""
