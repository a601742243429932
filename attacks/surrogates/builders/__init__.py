"""Surrogate builders: surrogates in, more surrogates out. One file each."""
