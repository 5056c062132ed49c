"""Gemini stand-in: `generateContent` over HTTP for PDF pages, for both of Google's SDKs, without a model behind it.

What lives where:

- ``questions``: exam questions from the text of pages
- ``forms``: those questions in the form that a response schema asks for
- ``wire``: requests read and answers written as Google's API has them
- ``faults``: what a test wants to go wrong
- ``server``: ``GeminiServer``: HTTP, the journal of calls, the steering over ``/sandbox/...``

Every answer says that it is not from Gemini. There are no streams, no files API, no caches, no batches, no tools.
"""

from superexam_rq.sandbox.gemini.faults import BLOCK_REASONS, FINISH_REASONS, KINDS, Fault
from superexam_rq.sandbox.gemini.server import Call, GeminiServer

__all__ = ["BLOCK_REASONS", "FINISH_REASONS", "KINDS", "Call", "Fault", "GeminiServer"]
