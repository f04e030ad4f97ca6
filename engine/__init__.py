"""Token ids in, token ids out: the engine. Knows no text and no HTTP."""
