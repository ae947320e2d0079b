"""A recipe judges the groups that began before it: their facts come from the pool and go through the streams' own fold."""
