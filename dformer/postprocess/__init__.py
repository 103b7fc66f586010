"""Predictions -> results."""
