"""Choosing tokens: the stateless sampler and the rules that shape its logits."""
