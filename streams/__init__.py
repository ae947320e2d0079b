"""Stream workers: they join a group's facts and emit it once it is ready."""
