"""`manta simulate`: a fleet of replicas in simulated time, under an autoscaler."""
