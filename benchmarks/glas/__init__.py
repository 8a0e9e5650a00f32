"""The proof: does pretraining on colon tiles segment GlaS's glands better? See README.md."""
