"""Synthetic breast-ultrasound images with exact masks, in BUSI's archive layout."""

from pipeline.phantoms.dataset import CLASS_SHARES, draw_phantom, plan_images, write_phantoms

__all__ = ["CLASS_SHARES", "draw_phantom", "plan_images", "write_phantoms"]
