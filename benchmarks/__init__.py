"""How fast the parts are, measured against others on the same machine in the same run."""
