"""Firestore stand-in: a gRPC server that unmodified Google clients use through FIRESTORE_EMULATOR_HOST.

What lives where:

- ``names``: resource names, ids and field paths, and the one error that carries a status code
- ``values``: order, size, limits and transforms of single values
- ``query``: one structured query over documents
- ``state``: the documents with their recent history, commits, transactions
- ``statefile``: where they are kept between two starts
- ``listen``: the watches of queries and documents
- ``service``: the RPCs, and ``FirestoreServer``
- ``faults``: answers that a test wants to go wrong

It is a double for development and tests. It has no security rules, no indexes (so it never asks for a
composite one), no Write stream, no pipelines, no vector search and no partitioned queries.
"""

from superexam_rq.sandbox.firestore.faults import Faults, inject
from superexam_rq.sandbox.firestore.service import FirestoreServer

__all__ = ["Faults", "FirestoreServer", "inject"]
