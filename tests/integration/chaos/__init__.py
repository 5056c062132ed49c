"""The chaos suite: break a running installation in every way, and count what was lost or done twice.

``python -m tests.integration.chaos`` runs the whole of it and prints a table; ``test_chaos`` runs a small part.

- ``parts``: the installation, made of parts that can be killed and started again
- ``faults``: one function for each way to break it
- ``report``: what was counted
- ``scenarios``: faults at named steps, faults at random moments under load, an outage of a minute
"""
