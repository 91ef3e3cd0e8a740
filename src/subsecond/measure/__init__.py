"""Measures what a model on a backend is worth: its quality against the reference; judges nothing."""
