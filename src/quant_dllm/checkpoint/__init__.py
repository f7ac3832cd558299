"""Folders of tensors: reading upstream's and ours, writing ours."""
