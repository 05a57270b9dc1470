"""One run's folder: its name, its files, its lock, and what is read back from it."""
