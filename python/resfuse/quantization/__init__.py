"""Post-training quantisation: ranges of feature maps found on a user's batches, and which layers they suit."""
