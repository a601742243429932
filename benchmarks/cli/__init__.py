"""The commands of the top floor, one file each."""
