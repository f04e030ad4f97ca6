"""Who guesses what a sequence says next, so that several tokens are verified in one step."""
