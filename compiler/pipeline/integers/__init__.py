"""Graphs that dequantize compute in integers: what tools for quantization write, read back from plain operations."""
