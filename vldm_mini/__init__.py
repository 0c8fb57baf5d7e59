"""vldm_mini: Video LDM ("Align your Latents", arXiv 2304.08818) as a small package.

A good order to read it in, one idea a module: `diffusion`, `blocks`, `unet`, `temporal`, `autoencoder`, `training`, `recipes`,
`pipeline`. Importing the package itself does nothing: import the module you need, for instance `from vldm_mini import diffusion`.
"""

__version__ = "0.1.0"
