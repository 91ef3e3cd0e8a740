"""Answers held to a JSON schema, a regular expression or a grammar; the only place that knows llguidance."""
