"""Scores that say what they measure."""
