"""A batch in a trainer's own format: one file a trainer, with its names, shapes, dtypes and masks.

Nothing here needs more than the plain install to be imported. What a format is made of (torch, pyarrow) is imported when it is
asked for. `arrange` in each file is pure numpy.
"""
