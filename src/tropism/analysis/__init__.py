"""Analyses of tables: pandas in, pandas and a verdict out; no torch, no model, no file."""
