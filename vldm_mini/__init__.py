"""vldm_mini: Video LDM ("Align your Latents", arXiv 2304.08818) as a small package.

A good order to read it in, one idea a module: `diffusion`, `blocks`, `unet`, `temporal`, `autoencoder`, `training`,
`recipes`, `pipeline`. Importing the package does nothing: import what you need, say `from vldm_mini import diffusion`.
"""

__version__ = "0.1.0"
