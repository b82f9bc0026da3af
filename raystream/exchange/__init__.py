"""Results as data that other programs read: files and tables."""
