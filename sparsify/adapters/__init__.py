"""Sparse training inside other programs' loops. One file each, imported only by who has that program installed."""
