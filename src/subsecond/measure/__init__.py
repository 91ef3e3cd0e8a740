"""Measures what a served model is worth: speed, memory, energy, quality, and where each is lost; judges nothing."""
