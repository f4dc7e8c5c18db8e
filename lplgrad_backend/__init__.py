"""LPLgrad active learning as a Label Studio ML backend."""

__version__ = "0.1.0"
