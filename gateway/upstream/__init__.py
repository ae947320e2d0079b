"""The engines: which there are, what they can do and serve, and which one gets a call."""
