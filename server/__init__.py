"""HTTP and text: the front end of octavo. Knows the engine only through `AsyncEngine`."""
