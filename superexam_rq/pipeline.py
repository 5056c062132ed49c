"""One job from start to end: load, split, generate, check, publish. Imports neither flask nor rq.

The order is chosen for the reader of Firestore: the document is taken first, so that progress shows at once; all
that can be refused for good is refused before Gemini is paid.
"""

from __future__ import annotations
