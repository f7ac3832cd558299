"""Presets: a recipe a file."""
