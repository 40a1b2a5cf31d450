"""Conversations to prompts through the checkpoint's template, and replies to reasoning, content and tool calls."""
