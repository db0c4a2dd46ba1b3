"""Who should an edge server serve, and where should each image's denoising be split?

Rooms: ``offloading`` (where to split, whom to serve), ``diffusion`` (what a split does to an image), ``edge`` (requests
over time), ``learning`` (deciding one request at a time) and ``study`` (experiments and pictures).
"""

__version__ = "0.2.0.dev0"
