"""Sizes and speeds worked out before anything is bought: pure arithmetic over a checkpoint's config and machines."""
