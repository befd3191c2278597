"""Which plan of ranks is fastest: what it costs in seconds and bytes, played out as events, and ranked."""
