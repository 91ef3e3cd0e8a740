"""Run a graph on a machine: the native one on processors, torch as reference and for other devices."""
