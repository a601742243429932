"""White-box attacks: row by row, so that broken samples leave and others take their place."""
