"""Learned words: an embedding for each class, found in a frozen pipeline with a teacher and without images."""
