"""Section 4.2: the same temporal layers in diffusers' U-Net."""
from .conversion import (
    copy_attention,
    copy_conv,
    from_spatio_temporal,
    image_backbone,
    to_spatio_temporal,
)
from .motion_adapter import MotionModule, insert_motion, motion_adapter
from .temporal_decoder import StableVideoDecoder, from_temporal_decoder, to_temporal_decoder

__all__ = [
    "MotionModule", "StableVideoDecoder", "copy_attention", "copy_conv", "from_spatio_temporal",
    "from_temporal_decoder", "image_backbone", "insert_motion", "motion_adapter",
    "to_spatio_temporal", "to_temporal_decoder",
]
