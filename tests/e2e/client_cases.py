"""What tests of different client libraries ask for alike."""

from __future__ import annotations

QUESTION = "What is the capital of France? Answer in one sentence."
MAX_TOKENS = 24
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "rank": {"type": "integer", "maximum": 9, "minimum": 0},
    },
    "required": ["city", "rank"],
    "additionalProperties": False,
}
WEATHER_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Bern", "Oslo"]}},
    "required": ["city"],
    "additionalProperties": False,
}
