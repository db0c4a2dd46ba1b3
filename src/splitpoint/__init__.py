"""Who should an edge server serve, and where should each image's denoising be split?

Four rooms: ``diffusion`` (what a split does to an image), ``offloading`` (where to split, whom to
serve), ``learning`` (deciding one request at a time) and ``study`` (experiments and pictures).
"""

__version__ = "0.1.0"
