"""Stores facts: every topic's records become rows of the pool in ClickHouse, each exactly once in effect."""
