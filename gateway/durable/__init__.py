"""Facts reach the broker, or wait for it on this machine's disk."""
