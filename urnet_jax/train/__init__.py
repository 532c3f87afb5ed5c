"""What moves weights."""
