"""petomo: end-to-end ptychographic electron tomography (You, Romanov and Pelz 2025)."""

__version__ = "0.1.0"
