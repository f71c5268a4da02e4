"""Figures: overlays, legends, feature maps, curves, confusion matrices."""
