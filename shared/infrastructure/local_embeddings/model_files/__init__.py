"""A model's files: where they are, whether they are what they should be, and what they say."""
