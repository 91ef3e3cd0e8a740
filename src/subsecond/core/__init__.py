"""What every layer may use: errors, settings, the hardware probe, units; it imports nothing of the package."""
