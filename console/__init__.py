"""What the pool holds is shown to people here: on the screens of a page."""
