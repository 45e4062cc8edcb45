"""Hypernetworks with Magnitude Invariant Parametrizations (MIP) in PyTorch Lightning."""
