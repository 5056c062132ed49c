"""The whole stack on one machine, without cloud or keys: stand-ins that speak the real wire protocols."""
