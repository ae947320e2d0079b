"""The shapes in which agents and engines speak: one file each, all of them pure."""
