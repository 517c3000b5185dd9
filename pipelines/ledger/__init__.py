"""What is done, and what was paid for: kept beside the answers, so that no row is lost and none is paid twice."""
