"""A model call: prepared, sent, said to the agent, captured and committed as steps."""
