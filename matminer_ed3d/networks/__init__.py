"""Networks that turn a batch of samples into logits or values, and the batches they take."""
