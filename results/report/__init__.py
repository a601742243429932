"""A run as one page: numbers are collected from its boards, drawn, and rendered as a self-contained file."""
