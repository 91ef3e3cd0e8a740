"""The commands, one file each; the only place that wires the parts together and the only one that prints."""
