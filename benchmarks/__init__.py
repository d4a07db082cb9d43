"""Questions about speed, memory and quality, answered by measurement. Not installed."""
