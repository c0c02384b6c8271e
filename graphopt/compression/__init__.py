"""Compression with recovery: how much can be cut for the quality that may be lost, found by trying."""

from graphopt.compression.job import compress
from graphopt.compression.request import CompressionRequest
from graphopt.compression.search import Trial, search

__all__ = ["CompressionRequest", "Trial", "compress", "search"]
