"""Measures of pictures: identity consistency, prompt alignment, subject masks, and their uncertainty."""
