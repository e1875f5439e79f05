"""Data sets and how pictures are prepared."""
