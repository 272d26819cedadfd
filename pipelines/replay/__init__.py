"""Replay: rejected rows through the stages again, with fixes."""
