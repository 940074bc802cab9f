"""Attention, one module a step of the workbook."""
