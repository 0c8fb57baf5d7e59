"""Section 4.2: the same temporal layers in diffusers' U-Net."""
from .checkpoints import CHECKPOINTS, MOTION_ADAPTER, load_pipeline
from .conversion import (
    copy_attention,
    copy_conv,
    from_spatio_temporal,
    image_backbone,
    to_spatio_temporal,
)
from .motion_adapter import MotionModule, insert_motion, motion_adapter
from .pipeline import VideoOutput, VideoPipeline, interpolated_prompts
from .temporal_decoder import StableVideoDecoder, from_temporal_decoder, to_temporal_decoder

__all__ = [
    "CHECKPOINTS", "MOTION_ADAPTER", "MotionModule", "StableVideoDecoder", "VideoOutput",
    "VideoPipeline", "copy_attention", "copy_conv", "from_spatio_temporal", "from_temporal_decoder",
    "image_backbone", "insert_motion", "interpolated_prompts", "load_pipeline", "motion_adapter",
    "to_spatio_temporal", "to_temporal_decoder",
]
