"""One tree of settings: read, checked whole, saved, documented."""
