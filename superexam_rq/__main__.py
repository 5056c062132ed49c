"""`python -m superexam_rq COMMAND`."""

from superexam_rq.cli import main

main()
