"""Arithmetic before a training: parameters, operations, memory, disk, data. Without torch."""
