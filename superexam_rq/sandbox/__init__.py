"""The whole stack on one machine, without cloud or keys.

Stand-ins that speak the real wire protocols: a Redis-protocol server (Valkey, embedded), Firestore over gRPC and
Gemini over HTTP. The service under them is the same code with other addresses. Nothing outside this package and
`cli` imports it.
"""
