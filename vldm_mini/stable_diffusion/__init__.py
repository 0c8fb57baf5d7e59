"""Section 4.2: the same temporal layers in diffusers' U-Net."""
from .conversion import copy_attention, copy_conv, from_spatio_temporal, image_backbone

__all__ = ["copy_attention", "copy_conv", "from_spatio_temporal", "image_backbone"]
