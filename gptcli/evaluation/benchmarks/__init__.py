"""Benchmarks: a file each, which turns a row into contexts, choices and the right one."""
