"""goodparts: learn from good parts, find the bad ones."""
