"""Measurements, each `python -m benchmarks.NAME [--quick] [--json]`, beside the tables that they wrote."""
