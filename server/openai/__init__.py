"""The OpenAI wire format: what comes in, what goes out, and every error in between."""
