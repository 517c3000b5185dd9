"""What Prometheus scrapes and Grafana shows: generated from `conf.metrics`."""
