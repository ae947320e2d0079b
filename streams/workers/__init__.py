"""Workers that look at trajectories that ended: they write rewards and annotations of them."""
