"""`manta submit`: a verb's job on a Ray cluster, through Ray Jobs."""
