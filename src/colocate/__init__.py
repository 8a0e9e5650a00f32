"""colocate: self-supervised pretraining for dense prediction in digital pathology."""
