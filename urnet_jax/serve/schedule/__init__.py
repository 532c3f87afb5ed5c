"""Which requests are answered, when, and at what S: numbers alone, on any clock."""
