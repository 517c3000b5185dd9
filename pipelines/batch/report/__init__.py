"""The report of a job for a person to look at: one HTML file."""
