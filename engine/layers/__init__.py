"""What models are built of. A layer owns its tensors and says where in a checkpoint they are."""
