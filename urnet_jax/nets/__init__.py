"""Networks and what they cost; they know nothing of configs, files, runs or training."""
