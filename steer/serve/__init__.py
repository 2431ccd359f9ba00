"""Serve one frozen model to many people, each with an edit of their own.

engine.py      what serves a request: prompt tokens and an edit in, tokens out
slots.py       the edits that are in use, as tables of the shared kernel
packed.py      hooks for batches in which the tokens of all requests stand in one row
choosing.py    how each request's next token is chosen
continuous.py  the engine over transformers' continuous batching
"""
