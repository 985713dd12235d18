"""Readers of files: text in, arrays out."""
