"""Corpora that are tokenised already: import from other programs' formats, and export to them."""
