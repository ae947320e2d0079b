"""What the pool holds is shown to people here: for now on one status page."""
