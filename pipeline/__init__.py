"""Reads a recipe, plans it, runs it, remembers it, reports it."""
