"""Makes facts: an agent's model calls go through here to an engine, and each becomes a durable step."""
