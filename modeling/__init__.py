"""Architectures and the dense operations they share.

The files of this room import only torch, torchvision, transformers, timm and each other (single dot), because they
also travel to the Hub as remote code.
"""
