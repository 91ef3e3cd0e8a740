"""Model families, one a file: functions that write the graph of a model from its configuration."""
