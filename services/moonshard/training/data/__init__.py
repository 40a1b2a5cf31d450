"""Dialogues made by our own templates: nothing in them is anybody else's text."""
