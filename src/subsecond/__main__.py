"""Makes `python -m subsecond` the same as the `subsecond` command."""

from __future__ import annotations

from subsecond.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
