"""What measures networks and shows what they do."""
