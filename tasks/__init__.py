"""One pipeline stage per module: read, call the library once, save, record."""
