"""Figures for papers, drawn with matplotlib from the numbers of a report."""
