"""Pure functions from graph to graph, one a file; `optimize` in `pipeline` applies them in order."""
