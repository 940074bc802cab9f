"""Mixture-of-Experts, one module a step of the workbook."""
