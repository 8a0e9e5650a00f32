"""The race: does a pretraining find glands better? See README.md."""
