"""What a batch job will come to, before it runs: `manta plan`."""
